"""Algorithms on chains whose optimum is known: how many nats below it they end, computed, not sampled.

gmm-x, gmm-sin   the 50-step chain of a two-component mixture, reward x at alpha 1 or sin 3x at alpha 0.5
...-std          the same with the standard deviation of every step tuned too
lqg16            20 steps of a 16-dimensional Gaussian, a quadratic reward
lqg16-flow       the same data as a flow, sampled with memoryless noise

`gap_nats` is (J* - J) / alpha; `excess_nats` is the gap below the best policy that keeps the reference's
variances, its distribution of x_T included. Rows of other runs in FILE.json stay.

    python benchmarks/exact.py [--only TASK ...] [--algorithms NAME ...] [--seeds N] [--out FILE.json]
"""

import argparse
import copy
import dataclasses
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from difftilt import (
    GRPO,
    NFT,
    PPO,
    AdjointMatching,
    Algorithm,
    Backprop,
    GaussianPolicy,
    Objective,
    PathConsistency,
    Policy,
    RewardWeighted,
    TrajectoryBalance,
    fit,
    unconditional,
)
from difftilt.algorithms.choices import make_algorithm
from difftilt.exact import gaussian, grid
from difftilt.exact.result import TableEvaluation
from difftilt.exact.toy import AffineResidual, GaussianDenoiser, Residual, Velocity, gmm, gmm_schedule
from difftilt.experiment.record import to_json
from difftilt.guard import Reward
from difftilt.networks.network_calls import NetworkCalls
from difftilt.processes.noise import FixedLarge, FlowSDE
from difftilt.processes.schedule import shifted_flow
from difftilt.training.ema import EMA
from difftilt.training.fit import denoisers
from difftilt.training.settings import Training

DIMENSION, STEPS = 16, 20


@dataclass(frozen=True)
class Task:
    """A problem, a policy to tune for it, and its exact measure.

    Args:
        chain: The reference, or the policy if asked for the trainable one.
        measure: The policy's exact reward, KL and J; the best J; and the best with the reference's variances.
    """

    reward: Reward
    alpha: float
    chain: Callable[[bool], Policy]
    measure: Callable[[Policy, Objective], tuple[Any, float, float]]


@dataclass(frozen=True)
class Entry:
    """An algorithm and how it is trained.

    Args:
        batch: Conditions per round.
        rounds: How many, while the learning rate falls to zero along a cosine.
        own_rate: Learning rate of the algorithm's own networks.
        ema: Decay of the averaged weights, which are what is evaluated.
        max_norm: Length that gradients are clipped to. Small where gradients through the chain have heavy
            tails (sin: the top 1 % of adjoints carry most of the variance), or Adam hardly moves.
        on: What differs on some tasks, by the beginning of their names.
    """

    algorithm: Callable[[], Algorithm]
    batch: int = 1024
    rounds: int = 150
    learning_rate: float = 1e-2
    own_rate: float = 1e-2
    ema: float = 0.99
    max_norm: float = 1.0
    on: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def for_task(self, task: str) -> "Entry":
        """With what differs on the task."""
        for name, changes in self.on.items():
            if task.startswith(name):
                return dataclasses.replace(self, **changes)
        return self


def x(sample, cond):
    return sample[:, 0]


def sin(sample, cond):
    return torch.sin(3 * sample[:, 0])


def mixture(tune_std: bool) -> Callable[[bool], GaussianPolicy]:
    def chain(tuned: bool) -> GaussianPolicy:
        network = Residual(gmm(gmm_schedule()), gmm_schedule(), 1) if tuned else gmm(gmm_schedule())
        settings: Any = {"prediction_type": "sample", "noise": FixedLarge()}
        return GaussianPolicy(network, gmm_schedule(), (1,), tune_std=tuned and tune_std, **settings)

    return chain


def measure_on_grid(policy: Policy, objective: Objective) -> tuple[TableEvaluation, float, float]:
    axis = grid.Axis(-8, 8, 801)
    fixed, _ = grid.solve_fixed_std(objective, axis)
    return grid.evaluate(objective, policy, axis), grid.solve(objective, axis).optimum.item(), fixed.item()


def data() -> tuple[torch.Tensor, torch.Tensor, gaussian.Quadratic]:
    """Mean and covariance of correlated Gaussian data of about unit size, and a concave reward."""
    generator = torch.Generator().manual_seed(0)
    axes, turned = (
        torch.linalg.qr(torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    variances = torch.linspace(0.3, 1.5, DIMENSION, dtype=torch.float64)
    curvature = turned * torch.linspace(0, 0.6, DIMENSION, dtype=torch.float64) @ turned.T
    mean = 0.5 * torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    centre = mean + 0.8 * torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    return mean, axes * variances @ axes.T, gaussian.bowl(centre, curvature)


def denoising(tuned: bool) -> GaussianPolicy:
    levels = gmm_schedule().respace(STEPS)
    levels = dataclasses.replace(levels, time=torch.arange(STEPS + 1))
    network: torch.nn.Module = GaussianDenoiser(levels, *data()[:2])
    if tuned:
        network = AffineResidual(network, levels.sigma**2, DIMENSION)
    settings: Any = {"prediction_type": "sample", "noise": FixedLarge()}
    return GaussianPolicy(network, levels, (DIMENSION,), **settings)


def flow(tuned: bool) -> GaussianPolicy:
    levels = dataclasses.replace(shifted_flow(STEPS, sigma_min=0.01), time=torch.arange(STEPS + 1))
    network: torch.nn.Module = GaussianDenoiser(levels, *data()[:2])
    if tuned:
        network = AffineResidual(network, levels.sigma.roll(1) ** 2, DIMENSION)
    settings: Any = {"noise": FlowSDE(), "prediction_type": "flow_prediction"}
    return GaussianPolicy(Velocity(network, levels), levels, (DIMENSION,), **settings)


def measure_affine(policy: Policy, objective: Objective) -> tuple[gaussian.GaussianEvaluation, float, float]:
    tuned, base = gaussian.affine(policy), gaussian.affine(objective.reference)
    reward = data()[2]
    best = gaussian.solve(base, reward, objective.alpha)
    fixed = gaussian.solve(base, reward, objective.alpha, fixed_cov=True)
    found = gaussian.evaluate(tuned, base, reward, objective.alpha)
    return found, best.optimum.item(), fixed.frozen.item()


TASKS = {
    "gmm-x": Task(x, 1.0, mixture(False), measure_on_grid),
    "gmm-sin": Task(sin, 0.5, mixture(False), measure_on_grid),
    "gmm-x-std": Task(x, 1.0, mixture(True), measure_on_grid),
    "gmm-sin-std": Task(sin, 0.5, mixture(True), measure_on_grid),
    "lqg16": Task(data()[2], 1.0, denoising, measure_affine),
    "lqg16-flow": Task(data()[2], 1.0, flow, measure_affine),
}
LQG: Any = {"batch": 3072, "rounds": 100, "learning_rate": 5e-3}
ALGORITHMS = {
    "ppo": Entry(PPO, on={"lqg": LQG}),
    "ddpo-sf": Entry(lambda: make_algorithm("ddpo-sf"), rounds=400, learning_rate=2e-2),
    "ddpo-is": Entry(lambda: make_algorithm("ddpo-is"), rounds=250, on={"lqg": LQG}),
    "dpok": Entry(lambda: make_algorithm("dpok"), on={"lqg": LQG}),
    "rloo": Entry(lambda: make_algorithm("rloo"), rounds=250, on={"lqg": LQG}),
    "grpo": Entry(lambda: GRPO(group_size=64), on={"lqg": LQG}),
    "backprop": Entry(
        lambda: Backprop(minibatches=1, recompute=False),
        batch=256,
        rounds=500,
        max_norm=1e3,
        on={
            "gmm-x": {"rounds": 700},
            "gmm-sin": {"batch": 1024, "rounds": 540, "learning_rate": 6e-2, "max_norm": 0.1},
        },
    ),
    "adjoint-matching": Entry(
        lambda: AdjointMatching(epochs=2, minibatches=8),
        rounds=180,
        learning_rate=3e-2,
        max_norm=1e3,
        on={
            "lqg": LQG,
            "gmm-sin": {
                "algorithm": lambda: AdjointMatching(share=0.25),
                "batch": 2048,
                "rounds": 390,
                "max_norm": 0.1,
            },
        },
    ),
    "reward-weighted": Entry(
        lambda: RewardWeighted(epochs=2, minibatches=8), learning_rate=2e-2, on={"lqg": LQG}
    ),
    "path-consistency": Entry(
        lambda: PathConsistency(pairs="full", recompute=False),
        batch=512,
        on={"gmm-sin": {"rounds": 300}, "lqg": LQG},
    ),
    "trajectory-balance": Entry(
        lambda: TrajectoryBalance(recompute=False),
        batch=768,
        on={"gmm-sin": {"rounds": 450}, "lqg": LQG},
    ),
    "nft": Entry(lambda: NFT(consistency=0.3, decay=0.0), rounds=600, on={"lqg": LQG | {"rounds": 400}}),
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
    print(f"{'task':12} {'algorithm':18} seed " + " ".join(f"{name:>11}" for name in COLUMNS))
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    for task in options.only:
        for name in options.algorithms:
            for seed in range(options.first, options.first + options.seeds):
                key = (task, name, seed)
                rows = [row for row in rows if (row["task"], row["algorithm"], row["seed"]) != key]
                rows.append(run(*key))
                numbers = " ".join(f"{rows[-1][column]:11.4f}" for column in COLUMNS)
                print(f"{task:12} {name:18} {seed:4} {numbers}", flush=True)
                if options.out:
                    options.out.write_text(json.dumps(machine | {"rows": rows}, indent=1) + "\n")


def run(name: str, algorithm_name: str, seed: int) -> dict[str, Any]:
    """Trains once and measures exactly; the exact references are not part of the time."""
    task, entry = TASKS[name], ALGORITHMS[algorithm_name].for_task(name)
    policy, objective, algorithm, cost = trained(task, entry, seed)
    with torch.no_grad():
        found, optimum, fixed = task.measure(policy, objective)
    gap, excess = ((level - found.objective.item()) / task.alpha for level in (optimum, fixed))
    return {
        "task": name,
        "algorithm": algorithm_name,
        "seed": seed,
        "alpha": task.alpha,
        "gap_nats": gap,
        "excess_nats": excess,
        "objective": found.objective.item(),
        "optimum": optimum,
        "optimum_fixed_std": fixed,
        "reward": found.reward.item(),
        "kl_nats": found.kl.item(),
        "reward_calls": objective.reward.calls,
        **cost,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
        "settings": to_json(algorithm)
        | {k: v for k, v in vars(entry).items() if k not in ("algorithm", "on")},
    }


def trained(task: Task, entry: Entry, seed: int) -> tuple[Policy, Objective, Algorithm, dict[str, Any]]:
    """A task's chain, tuned; its problem, what tuned it, and the passes and seconds that this took."""
    torch.manual_seed(seed)
    reference, policy = task.chain(False), task.chain(True)
    objective = Objective(task.reward, reference.requires_grad_(False), task.alpha)
    algorithm, counter = entry.algorithm(), NetworkCalls()
    wall, cpu = time.perf_counter(), time.process_time()
    algorithm.setup(policy, unconditional(2))
    with counter.watching(denoisers(policy, reference, algorithm)):
        train(policy, objective, algorithm, entry, seed)
    cost = {
        "network_calls": {"forward": counter.forward, "backward": counter.backward},
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - cpu,
    }
    return policy, objective, algorithm, cost


def train(policy: Policy, objective: Objective, algorithm: Algorithm, entry: Entry, seed: int) -> None:
    """`fit` with Adam, a falling learning rate and averaged weights, which the policy has afterwards."""
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "lr": rate, "full": rate}
        for module, rate in ((policy, entry.learning_rate), (algorithm, entry.own_rate))
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    average = EMA(policy, entry.ema)
    conds = [unconditional(entry.batch)] * entry.rounds
    for row in fit(
        policy, objective, algorithm, conds, optimizer, Training(seed=seed, max_norm=entry.max_norm)
    ):
        share = (row["round"] + 1) / entry.rounds
        for group in optimizer.param_groups:
            group["lr"] = group["full"] * (1 + math.cos(math.pi * share)) / 2
        average.update()
    with average.applied():
        weights = copy.deepcopy(policy.state_dict())
    policy.load_state_dict(weights)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument(
        "--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS), metavar="NAME"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
