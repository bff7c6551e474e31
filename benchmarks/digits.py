"""The digit recipes with three seeds each: what the README says about fine-tuning comes from here.

threes   reward log p(3 | x), alpha 0.1: the demo
bayes    the same reward, alpha 1: the optimum is the class-conditional law p(x | 3)

python benchmarks/digits.py [--only TASK ...] [--seeds N] [--rounds N] [--out FILE.json]
"""

import argparse
import dataclasses
import platform
import tempfile
import time
from pathlib import Path

import torch

from difftilt.recipes.digits import ALGORITHM, TRAINING, digits
from difftilt.recipes.execute import finetune
from difftilt.recipes.record import describe, to_json, write_json
from difftilt.training.distributed import make_accelerator

ALPHA = {"threes": 0.1, "bayes": 1.0}


def main() -> None:
    options = parse()
    rows = [run(task, seed, options.rounds) for task in options.only for seed in range(options.seeds)]
    machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if options.out:
        write_json(options.out, machine | {"rows": rows})


def run(task: str, seed: int, rounds: int) -> dict:
    training = dataclasses.replace(TRAINING, seed=seed, rounds=rounds)
    settings = {"alpha": ALPHA[task], "training": training}
    with tempfile.TemporaryDirectory() as folder:
        record = describe("digits", {"algorithm": ALGORITHM, **settings}, 1, "cpu")
        write_json(Path(folder) / "run.json", record)
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
    parser.add_argument("--only", nargs="+", choices=list(ALPHA), default=list(ALPHA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=TRAINING.rounds)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
