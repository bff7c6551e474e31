"""Measures the digits model of the package; the model card states these numbers.

python benchmarks/digits_card.py [--steps N ...] [--out FILE.json]
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from difftilt.domains.digits.model import STEPS, asked, digits_policy
from difftilt.domains.digits.pretrain import quality
from difftilt.networks.bundle import shipped_folder
from difftilt.policy import rollout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 12, 16, STEPS])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/digits_card.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for steps in options.steps:
        row = quality(shipped_folder("digits"), steps)
        rows.append(row | {"microseconds_per_sample_and_step": speed(steps)})
        frechet = {name: f"{value:.3f}" for name, (value, _) in row["frechet"].items()}
        print(f"{steps:3} steps: gold accuracy {row['gold_accuracy'][0]:.4f}, Frechet distance {frechet}")
    machine = {
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": 1,
    }
    made = json.loads((shipped_folder("digits") / "config.json").read_text())["made"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine, "made": made, "rows": rows}, indent=1) + "\n")


def speed(steps: int, count: int = 256) -> float:
    """Time of a network forward pass, the fastest of three, in microseconds per image."""
    policy, seconds = digits_policy(steps), []
    for _ in range(3):
        start = time.perf_counter()
        rollout(policy, asked(count))
        seconds.append(time.perf_counter() - start)
    return min(seconds) / (count * steps) * 1e6


if __name__ == "__main__":
    main()
