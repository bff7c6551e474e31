"""How far algorithms end from the best policy, at their defaults, on rewards that nobody tuned anything for.

mixture   twenty rewards of a random family on the 10-step chain of a 1-D mixture; see `reward`
lqg16     ten random quadratic rewards on 20 steps of a 16-dimensional Gaussian

Every algorithm, its settings and `Training` are at their defaults but for how long they may train: as many
rounds of 512 as they need in less than two minutes. `excess_nats` is the gap below the best policy that keeps
the reference's variances, exact; null of a policy that diverged or left the grid. Defaults were chosen on
seeds 100 to 102, 0, 3, 8 and 18 of `mixture`, and 2 of `lqg16`.

    python benchmarks/defaults.py [--only TASK ...] [--algorithms NAME ...] [--first N] [--count N]
                                  [--out FILE.json]
"""

import argparse
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import exact as tuned
import torch
from rounds import train
from torch import Tensor

from difftilt import FixedLarge, GaussianPolicy, Objective, Policy
from difftilt.algorithms.choices import make_algorithm
from difftilt.exact import gaussian, grid
from difftilt.exact.toy import Residual, gmm, gmm_schedule
from difftilt.experiment.job import tune
from difftilt.experiment.record import write_json
from difftilt.guard import Reward, RewardError
from difftilt.training.settings import Training

ROUNDS = {
    "ppo": 200, "grpo": 200, "backprop": 700, "path-consistency": 300,
    "adjoint-matching": 800, "reward-weighted": 400, "trajectory-balance": 400, "nft": 400,
}  # fmt: skip
FARTHER = {  # of lqg16
    "ppo": 1000, "grpo": 600, "backprop": 300, "path-consistency": 900, "trajectory-balance": 1200,
}  # fmt: skip
BATCH = 512
STEPS = 10
Row = dict[str, Any]


def reward(seed: int) -> tuple[Reward, float, str]:
    """One of the family, an alpha, and how they read.

    A sum of two terms, each a concave parabola, a quartic that falls on both sides, a sine, a smooth step or
    a kink of random place, size and width; alpha is log-uniform in [0.1, 3].
    """
    dice = torch.Generator().manual_seed(1000 + seed)

    def drawn(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=dice).item()

    def term() -> tuple[Callable[[Tensor], Tensor], str]:
        size, place, width = drawn(0.3, 1.5), drawn(-2, 2), drawn(0.2, 1)
        kinds: Mapping[str, Callable[[Tensor], Tensor]] = {
            f"-{size:.2f} (x - {place:.2f})^2": lambda x: -size * (x - place) ** 2,
            f"-{size / 10:.3f} (x - {place:.2f})^4": lambda x: -size / 10 * (x - place) ** 4,
            f"{size:.2f} sin({1 + 3 * width:.2f} x + {place:.2f})": lambda x: (
                size * torch.sin((1 + 3 * width) * x + place)
            ),
            f"{2 * size:.2f} sigmoid((x - {place:.2f}) / {width / 2:.2f})": lambda x: (
                2 * size * torch.sigmoid((x - place) / (width / 2))
            ),
            f"-{size:.2f} |x - {place:.2f}|": lambda x: -size * (x - place).abs(),
        }
        names = [*kinds]
        chosen = names[int(torch.randint(len(names), (), generator=dice))]
        return kinds[chosen], chosen

    (first, one), (second, other) = term(), term()
    alpha = 0.1 * 30 ** drawn(0, 1)
    return lambda x, c: first(x[:, 0]) + second(x[:, 0]), alpha, f"{one} + {other}"


def mixture(seed: int) -> tuple[Policy, Objective, str, Callable[[Policy, Objective], tuple[Any, float]]]:
    """The chain to tune, its objective, how it reads, and its exact measure with the best that can be."""
    schedule = gmm_schedule(steps=STEPS)
    settings: Any = {"prediction_type": "sample", "noise": FixedLarge(), "shape": (1,)}
    reference = GaussianPolicy(gmm(schedule), schedule, **settings).requires_grad_(False)
    policy = GaussianPolicy(Residual(gmm(schedule), schedule, 1), schedule, **settings)
    asked, alpha, text = reward(seed)

    def measure(policy: Policy, objective: Objective) -> tuple[Any, float]:
        axis = grid.Axis(-8, 8, 801)
        fixed, _ = grid.solve_fixed_std(objective, axis)
        return grid.evaluate(objective, policy, axis), fixed.item()

    return policy, Objective(asked, reference, alpha), text, measure


def lqg16(seed: int) -> tuple[Policy, Objective, str, Callable[[Policy, Objective], tuple[Any, float]]]:
    """The same on correlated Gaussian data, with a concave quadratic reward."""
    dice = torch.Generator().manual_seed(2000 + seed)
    mean, _, _ = tuned.data()
    turn, _ = torch.linalg.qr(torch.randn(len(mean), len(mean), generator=dice, dtype=torch.float64))
    strength, far, power = torch.rand(3, generator=dice, dtype=torch.float64).tolist()
    curvature = turn * torch.linspace(0, 1.2 * strength, len(mean), dtype=torch.float64) @ turn.T
    centre = mean + 1.6 * far * torch.randn(len(mean), generator=dice, dtype=torch.float64)
    bowl, alpha = gaussian.bowl(centre, curvature), 0.3 * 10**power
    reference, policy = tuned.denoising(False).requires_grad_(False), tuned.denoising(True)

    def measure(policy: Policy, objective: Objective) -> tuple[Any, float]:
        own, base = gaussian.affine(policy), gaussian.affine(objective.reference)
        best = gaussian.solve(base, bowl, alpha, fixed_cov=True).frozen.item()
        return gaussian.evaluate(own, base, bowl, alpha), best

    text = f"a bowl of curvatures up to {1.2 * strength:.2f}, {1.6 * far:.2f} away"
    return policy, Objective(bowl, reference, alpha), text, measure


TASKS = {"mixture": (mixture, 20), "lqg16": (lqg16, 10)}


def run(task: str, name: str, seed: int, **over: Any) -> Row:
    """Trains once and measures exactly."""
    torch.manual_seed(seed)
    policy, objective, text, measure = TASKS[task][0](seed)
    rounds = FARTHER.get(name, ROUNDS[name]) if task == "lqg16" else ROUNDS[name]
    training = Training(rounds=rounds, batch=BATCH, seed=seed, **over)
    job = tune(
        policy,
        objective.reward,
        make_algorithm(name),
        objective.alpha,
        training,
        reference=objective.reference,
    )
    busy, gap, kl = time.process_time(), None, None
    with suppress(FloatingPointError, RewardError):  # it diverged
        for _ in train(job):
            pass
    seconds = time.process_time() - busy
    with torch.no_grad(), suppress(ValueError):
        found, best = measure(policy, objective)
        gap, kl = (best - found.objective.item()) / objective.alpha, found.kl.item()
    return {
        "task": task, "algorithm": name, "seed": seed, "reward": text, "alpha": objective.alpha,
        "rounds": rounds, "excess_nats": gap, "kl_nats": kl, "cpu_seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--algorithms", nargs="+", choices=ROUNDS, default=list(ROUNDS), metavar="NAME")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, help="of rewards; all by default")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = (
        json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    )
    for task in options.only:
        last = TASKS[task][1] if options.count is None else options.first + options.count
        for seed in range(options.first, last):
            for name in options.algorithms:
                rows = [r for r in rows if (r["task"], r["algorithm"], r["seed"]) != (task, name, seed)]
                rows.append(run(task, name, seed))
                cells = (f"{x:.4g}" if isinstance(x, float) else x for x in rows[-1].values())
                print(*cells, sep="  ", flush=True)
                if options.out:
                    write_json(options.out, {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
