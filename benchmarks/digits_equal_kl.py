"""Every algorithm on the digits at equal KL, and how much reward each buys for how much KL.

equal-kl   make threes, log p(3 | x), with a target of 4 nats instead of an alpha
frontier   the same reward at five fixed alphas

    python benchmarks/digits_equal_kl.py [--only TASK ...] [--algorithms NAME ...] [--seeds N]
        [--out FILE.json] [--picture FILE.png]

`reward` is by the classifier that trains, `gold` the share of threes by one that never does. `--picture`
draws what FILE.json holds. Rows of other runs in FILE.json stay.
"""

import argparse
import dataclasses
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from fixed_rate import FIXED

from difftilt import (
    GRPO,
    NFT,
    PPO,
    AdjointMatching,
    Algorithm,
    Backprop,
    PathConsistency,
    RewardWeighted,
    TrajectoryBalance,
)
from difftilt.domains.digits.recipe import digits
from difftilt.experiment.finetune import finetune
from difftilt.experiment.job import Training
from difftilt.experiment.record import to_json, write_json
from difftilt.training.distributed import make_accelerator

TARGET_KL, START_ALPHA, STEPS = 4.0, 0.3, 10
ALPHAS = (0.03, 0.1, 0.3, 1.0, 3.0)
TRAINING = Training(rounds=30, batch=128, learning_rate=1.5e-4, schedule="linear", **FIXED)
SHORT = dataclasses.replace(TRAINING, rounds=15)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An algorithm as it is set for the digits, and what differs from `TRAINING`.

    Args:
        tilts: How often a run tilts, where alpha is that of one tilt; all alphas are multiplied by it.
    """

    algorithm: Callable[[], Algorithm]
    learning_rate: float = TRAINING.learning_rate
    ema_decay: float = 0.0
    tilts: float = 1.0


ALGORITHMS = {
    "ppo": Entry(lambda: PPO(advantage="critic", minibatches=8)),
    "grpo": Entry(lambda: GRPO(group_size=32, minibatches=8)),
    "backprop": Entry(lambda: Backprop(minibatches=8, recompute=False)),
    "adjoint-matching": Entry(lambda: AdjointMatching(minibatches=8)),
    "reward-weighted": Entry(
        lambda: RewardWeighted(target="iterated", epochs=2, minibatches=8), 3e-5, tilts=10
    ),
    "path-consistency": Entry(lambda: PathConsistency(minibatches=8, recompute=False)),
    "trajectory-balance": Entry(lambda: TrajectoryBalance(minibatches=8, recompute=False)),
    "nft": Entry(lambda: NFT(consistency=0.0, minibatches=8, decay=0.8), 5e-5, ema_decay=0.95),
}


def main() -> None:
    options = parse()
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    for task in options.only:
        for name in options.algorithms:
            for seed in range(options.first, options.first + options.seeds):
                for alpha in ALPHAS if task == "frontier" else (START_ALPHA,):
                    row = run(task, name, seed, alpha)
                    rows = [other for other in rows if key(other) != key(row)] + [row]
                    if options.out:
                        write_json(options.out, machine | {"rows": rows})
    if options.picture:
        draw(rows, options.picture)


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["algorithm"], row["seed"], row["start_alpha"]


def run(task: str, name: str, seed: int, alpha: float) -> dict[str, Any]:
    """Tunes once. The time includes both evaluations."""
    entry, equal = ALGORITHMS[name], task == "equal-kl"
    training = dataclasses.replace(
        TRAINING if equal else SHORT,
        learning_rate=entry.learning_rate,
        ema_decay=entry.ema_decay,
        seed=seed,
    )
    settings: dict[str, Any] = {"algorithm": entry.algorithm(), "alpha": alpha * entry.tilts, "steps": STEPS}
    settings |= {"target_kl": TARGET_KL if equal else None, "training": training}
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        summary = finetune(digits(**settings), Path(folder), make_accelerator())
        wall = time.monotonic() - start
    row = {"task": task, "algorithm": name, "seed": seed, "start_alpha": alpha, **summary}
    row |= {"gold": summary["gold"]["gold accuracy"], "gold_se": summary["gold_se"]["gold accuracy"]}
    row["gold_log_p"] = summary["gold"]["gold log p"]
    row |= {"wall_seconds": wall, "settings": {name: to_json(value) for name, value in settings.items()}}
    print(
        f"{task:9} {name:18} seed {seed} alpha {row['alpha']:7.3f}  reward {row['reward']:7.3f}"
        f" ± {row['reward_se']:.3f}  KL {row['kl_nats']:6.3f} ± {row['kl_nats_se']:.3f} nats"
        f"  J {row['objective']:7.3f}  gold {row['gold']:.3f}  diversity {row['diversity']:.3f}"
        f"  {row['reward_calls']} calls  {wall:.0f} s",
        flush=True,
    )
    return row


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Gold accuracy against the KL that was paid for it, one line per algorithm."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharex=True)
    for k, name in enumerate(ALGORITHMS):
        group = [row for row in rows if row["task"] == "frontier" and row["algorithm"] == name]
        group.sort(key=lambda row: row["start_alpha"])
        for axis, what in zip(axes, ("reward", "gold"), strict=True):
            if group:
                kl, error = ([row[column] for row in group] for column in ("kl_nats", f"{what}_se"))
                style: Any = {"marker": "osD^vP*X"[k % 8], "ms": 5, "lw": 1.2, "color": f"C{k}"}
                axis.errorbar(kl, [row[what] for row in group], error, label=name, **style)
    for axis, label in zip(axes, ("reward, log p(3 | x) in nats", "gold accuracy"), strict=True):
        axis.set_xscale("log")
        axis.set(xlabel="KL to the pretrained model, nats", ylabel=label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[1].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--only", nargs="*", choices=["equal-kl", "frontier"], default=["equal-kl", "frontier"]
    )
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
