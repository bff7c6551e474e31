"""The digit recipes with three seeds each: what the README says about fine-tuning comes from here.

threes   reward log p(3 | x), alpha 0.1, 16 steps: the demo
bayes    the same reward, alpha 1, 32 steps: the optimum is the class-conditional distribution p(x | 3)

python benchmarks/digits.py [--only TASK ...] [--seeds N] [--out FILE.json]
"""

import argparse
import dataclasses
import platform
import tempfile
import time
from pathlib import Path

import torch

from difftilt.domains.digits.recipe import TRAINING, digits
from difftilt.experiment.finetune import finetune
from difftilt.experiment.record import to_json, write_json
from difftilt.training.distributed import make_accelerator

SETTINGS = {
    "threes": {"alpha": 0.1, "steps": 16, "training": TRAINING},
    "bayes": {
        "alpha": 1.0,
        "steps": 32,
        "training": dataclasses.replace(TRAINING, rounds=60, learning_rate=5e-4),
    },
}


def main() -> None:
    options = parse()
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    rows = []
    for task in options.only:
        for seed in range(options.seeds):
            rows.append(run(task, seed))
            if options.out:
                write_json(options.out, machine | {"rows": rows})


def run(task: str, seed: int) -> dict:
    settings = dict(SETTINGS[task])
    settings["training"] = dataclasses.replace(settings["training"], seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        summary = finetune(digits(**settings), Path(folder), make_accelerator())
        wall = time.monotonic() - start
    row = {"task": task, "algorithm": "ppo", "seed": seed, **summary, "wall_seconds": wall}
    row["settings"] = {name: to_json(value) for name, value in settings.items()}
    gold = summary["gold"]["gold accuracy"]
    print(
        f"{task:8} seed {seed}  reward {row['reward']:.3f} ± {row['reward_se']:.3f}  KL {row['kl_nats']:.3f}"
        f" ± {row['kl_nats_se']:.3f} nats  J {row['objective']:.3f}  gold accuracy {gold:.3f}  {wall:.0f} s"
    )
    for name, (value, error) in summary["distances"].items():
        print(f"         {name}: {value:.4f} ± {error:.4f}")
    return row


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
