"""Algorithms on chains whose optimum is known: how many nats below it they end, by quadrature.

gmm-x, gmm-sin   the 50-step chain of a two-component mixture, reward x at alpha 1 or sin 3x at alpha 0.5
...-std          the same with the standard deviation of every step tuned too

`gap_nats` is (J* - J) / alpha; `excess_nats` is the gap below the best policy that keeps the reference's
variances. Rows of other runs in FILE.json stay.

    python benchmarks/exact.py [--only TASK ...] [--algorithms NAME ...] [--seeds N] [--out FILE.json]
"""

import argparse
import copy
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from difftilt import GRPO, PPO, Algorithm, Objective, fit, unconditional
from difftilt.exact import grid as exact
from difftilt.guard import Reward
from difftilt.models.toy import Residual, gmm, gmm_grid
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.training.counter import Counter
from difftilt.training.ema import EMA


@dataclass(frozen=True)
class Task:
    """A reward, the weight of the KL, and whether the policy may change its standard deviations."""

    reward: Reward
    alpha: float
    tune_std: bool = False


@dataclass(frozen=True)
class Entry:
    """An algorithm and how it is trained.

    Args:
        batch: Conditions per round.
        rounds: How many, while the learning rate falls to zero along a cosine.
        ema: Decay of the averaged weights, which are what is evaluated.
    """

    algorithm: Callable[[], Algorithm]
    batch: int = 1024
    rounds: int = 150
    learning_rate: float = 1e-2
    ema: float = 0.99


def x(sample, cond):
    return sample[:, 0]


def sin(sample, cond):
    return torch.sin(3 * sample[:, 0])


TASKS = {
    "gmm-x": Task(x, 1.0),
    "gmm-sin": Task(sin, 0.5),
    "gmm-x-std": Task(x, 1.0, tune_std=True),
    "gmm-sin-std": Task(sin, 0.5, tune_std=True),
}
ALGORITHMS = {
    "ppo": Entry(PPO),
    "grpo": Entry(lambda: GRPO(group_size=64)),
}
COLUMNS = ("excess_nats", "gap_nats", "objective", "optimum", "reward", "kl_nats", "seconds", "cpu_seconds")


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    machine = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    print(f"{'task':12} {'algorithm':10} seed " + " ".join(f"{name:>11}" for name in COLUMNS))
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    for task in options.only:
        for name in options.algorithms:
            for seed in range(options.seeds):
                key = (task, name, seed)
                rows = [row for row in rows if (row["task"], row["algorithm"], row["seed"]) != key]
                rows.append(run(*key))
                numbers = " ".join(f"{rows[-1][column]:11.4f}" for column in COLUMNS)
                print(f"{task:12} {name:10} {seed:4} {numbers}", flush=True)
                if options.out:
                    options.out.write_text(json.dumps(machine | {"rows": rows}, indent=1) + "\n")


def run(name: str, algorithm_name: str, seed: int) -> dict[str, Any]:
    """Trains once and measures exactly; the exact references are not part of the time."""
    task, entry = TASKS[name], ALGORITHMS[algorithm_name]
    torch.manual_seed(seed)
    reference, policy = chain(gmm(gmm_grid())), chain(Residual(gmm(gmm_grid()), gmm_grid(), 1), task.tune_std)
    objective, algorithm, counter = (
        Objective(task.reward, reference, task.alpha),
        entry.algorithm(),
        Counter(),
    )
    wall, cpu = time.perf_counter(), time.process_time()
    with counter.watching([reference.network, policy.network]):
        train(policy, objective, algorithm, entry, seed)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found, best, fixed = measure(policy, objective)
    gap, excess = ((level - found.objective).item() / task.alpha for level in (best.optimum, fixed))
    return {
        "task": name,
        "algorithm": algorithm_name,
        "seed": seed,
        "alpha": task.alpha,
        "gap_nats": gap,
        "excess_nats": excess,
        "objective": found.objective.item(),
        "optimum": best.optimum.item(),
        "optimum_fixed_std": fixed.item(),
        "reward": found.reward.item(),
        "kl_nats": found.kl.item(),
        "reward_calls": objective.reward.calls,
        "network_calls": {"forward": counter.forward, "backward": counter.backward},
        "seconds": wall,
        "cpu_seconds": cpu,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
        "settings": asdict(algorithm) | {k: v for k, v in vars(entry).items() if k != "algorithm"},
    }


def chain(network: torch.nn.Module, tune_std: bool = False) -> GaussianPolicy:
    settings: Any = {"prediction_type": "sample", "variance_type": "fixed_large", "tune_std": tune_std}
    return GaussianPolicy(network, gmm_grid(), (1,), **settings)


def train(
    policy: GaussianPolicy, objective: Objective, algorithm: Algorithm, entry: Entry, seed: int
) -> None:
    """`fit` with Adam, a falling learning rate and averaged weights, which the policy has afterwards."""
    algorithm.setup(policy, unconditional(2))
    tuned = [p for p in [*policy.parameters(), *algorithm.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(tuned, entry.learning_rate)
    average = EMA(policy, entry.ema)
    conds = [unconditional(entry.batch)] * entry.rounds
    for row in fit(policy, objective, algorithm, conds, optimizer, seed=seed):
        share = (row["round"] + 1) / entry.rounds
        for group in optimizer.param_groups:
            group["lr"] = entry.learning_rate * (1 + math.cos(math.pi * share)) / 2
        average.update()
    with average.applied():
        weights = copy.deepcopy(policy.state_dict())
    policy.load_state_dict(weights)


@torch.no_grad()
def measure(
    policy: GaussianPolicy, objective: Objective
) -> tuple[exact.Evaluation, exact.Solution, torch.Tensor]:
    axis = exact.Axis(-8, 8, 801)
    fixed, _ = exact.solve_fixed_std(objective, axis)
    return exact.evaluate(objective, policy, axis), exact.solve(objective, axis), fixed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument(
        "--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
