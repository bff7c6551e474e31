"""How close every algorithm comes to the exact optimum on landscapes in which every sequence was measured.

    python benchmarks/landscape.py six6-lower-0.1 [--methods vargrad ppo ...] [--seeds 0 1 2] [--seconds 100]

tunes a model pretrained on the lower half of the landscape (or on the whole of it), one torch thread, and
adds to results/landscape/PROBLEM.json: the gap (J* - J) / alpha in nats, both KL's between the policy's
distribution and p_r, and the probability of what is better than anything seen in pretraining, all of them
exact, against processor seconds of training and reward calls. `student` is the same network taught by maximum
likelihood on exact samples of p_r for as long: what the network and the time allow. The pretrained models,
the same for all methods and seeds, are made on first use and kept in --models; that of SIX6's lower half
ships.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from fixed_rate import FIXED
from safetensors.torch import load_file, save_file

from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.local_search import LocalSearch
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import unconditional
from difftilt.data.landscape import Landscape, load_landscape
from difftilt.domains.landscape.model import (
    SHIPPED,
    best_seen,
    chain_of,
    landscape_network,
    landscape_policy,
    tunable,
)
from difftilt.domains.landscape.pretrain import train
from difftilt.exact import landscape as exact
from difftilt.guard import Reward
from difftilt.objective import Algorithm, Objective
from difftilt.processes.masked import MaskedPolicy
from difftilt.samplers.best_of import best_of
from difftilt.training.fit import fit
from difftilt.training.pretrain import explain, regress
from difftilt.training.seeds import seed_round
from difftilt.training.settings import Training
from difftilt.training.unfinished import Unfinished
from difftilt.transition import one_hot

RESULTS = Path(__file__).parent / "results" / "landscape"
PRETRAIN_STEPS = 4000
BATCH, RATE = 2048, 2e-2
MARKS = (0.1, 0.25, 0.5, 1.0)  # of the seconds, where J is computed
DELIVERED = 1000  # sequences that a user of best-of-N wants for all the reward calls
METHODS: dict[str, Callable[[], Algorithm]] = {
    "vargrad": lambda: TrajectoryBalance(recompute=False),
    "ppo": lambda: PPO(advantage="path", epochs=1, kl="reward"),
    "local-search": LocalSearch,
    "grpo": lambda: GRPO(group_size=512, epochs=1),
    "reward-weighted": lambda: RewardWeighted(form="denoising"),
    "pcl": lambda: PathConsistency(recompute=False),
    "backprop": lambda: Backprop(minibatches=4, recompute=False),
}


@dataclass
class Problem:
    """A landscape, the model that was pretrained on it, and the optimum."""

    name: str
    table: Landscape
    reference: MaskedPolicy
    alpha: float

    def __post_init__(self):
        self.objective = Objective(self.table.lookup, self.reference, self.alpha)
        self.solved = exact.solve(self.objective, self.table.score)
        self.better = self.table.score > best_seen(self.table)

    def measure(self, policy: MaskedPolicy) -> dict[str, float]:
        found = exact.evaluate(self.objective, policy, self.table.score)
        return {
            "gap_nats": (self.solved.optimum - found.objective).item() / self.alpha,
            "path_kl_nats": found.kl.item(),
            **self.compare(found.law),
        }

    def compare(self, law: torch.Tensor) -> dict[str, float]:
        best = self.solved.law
        return {
            "reward": (law @ self.table.score).item(),
            "reverse_kl_nats": exact.kl(law, best).item(),
            "forward_kl_nats": exact.kl(best, law).item(),
            "missed": best[law < best / 10].sum().item(),
            "better_than_seen": law[self.better].sum().item(),
        }


def make_problem(name: str, models: Path) -> Problem:
    landscape, data, alpha = name.split("-")
    table = load_landscape(landscape)
    if (landscape, data) == (SHIPPED, "lower"):
        return Problem(name, table, landscape_policy(table).requires_grad_(False), float(alpha))
    rows = table.lower_half() if data == "lower" else table.measured.nonzero()[:, 0]
    network = pretrained(table, rows, models / f"{landscape}-{data}.safetensors")
    return Problem(name, table, chain_of(network.requires_grad_(False), table), float(alpha))


def pretrained(table: Landscape, rows: torch.Tensor, path: Path) -> nn.Module:
    """A network that learned these sequences, whatever their scores; a file keeps it for the next time."""
    torch.manual_seed(0)
    network, data = landscape_network(table), table.sequences()[rows]
    if path.exists():
        network.load_state_dict(load_file(path))
        return network
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = Unfinished(path, {}, {"learned": data})
    train(network, table, data, PRETRAIN_STEPS, 1024, 3e-3, 0, kept)
    save_file(network.state_dict(), path)
    kept.remove()
    return network


def run(
    problem: Problem, method: str, seed: int, seconds: float, reward: Reward | None = None
) -> dict[str, Any]:
    """One training, with J along the way.

    Args:
        reward: Asked in the place of the table, whose answers it must give.
    """
    seed_round(seed, 0)
    policy = tunable(problem.reference, problem.table)
    row: dict[str, Any] = {"method": method, "seed": seed, "seconds": seconds}
    objective = Objective(reward or problem.table.lookup, problem.reference, problem.alpha)
    surrogate = None
    if method == "backprop":
        surrogate, row["surrogate"] = fitted(problem.table, seed)
        objective = Objective(lambda x, _: surrogate(x), problem.reference, problem.alpha)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in policy.parameters() if p.requires_grad], "lr": RATE}
    ]
    if method != "student":
        algorithm = METHODS[method]()
        algorithm.setup(policy, unconditional(2))
        own = list(algorithm.parameters())
        groups += [{"params": own, "lr": RATE}] if own else []
        optimizer = torch.optim.Adam(groups, fused=True)
        rounds = iter(unconditional(BATCH) for _ in range(10**9))
        steps = fit(policy, objective, algorithm, rounds, optimizer, Training(seed=seed, **FIXED))
    else:
        optimizer = torch.optim.Adam(groups, fused=True)
        steps = student(problem, policy, optimizer, seed)
    clock, curve = Clock(), []
    for _ in steps:
        spent = clock.seconds()
        for group in optimizer.param_groups:
            group["lr"] = RATE * max(1 - spent / seconds, 0)
        if spent >= MARKS[len(curve)] * seconds:
            with clock.paused():
                numbers = problem.measure(policy)
            curve.append({"seconds": spent, "calls": objective.reward.calls, **numbers})
            if len(curve) == len(MARKS):
                break
    if surrogate is not None:
        row["surrogate"] |= biased(problem, policy, surrogate)
    return row | {"curve": curve}


class Clock:
    """Processor seconds, less those of pauses."""

    def __init__(self):
        self.start = time.process_time()

    def seconds(self) -> float:
        return time.process_time() - self.start

    def paused(self) -> "Clock":
        return self

    def __enter__(self) -> None:
        self.held = time.process_time()

    def __exit__(self, *error: object) -> None:
        self.start += time.process_time() - self.held


def student(
    problem: Problem, policy: MaskedPolicy, optimizer: torch.optim.Optimizer, seed: int
) -> Iterator[Any]:
    """Maximum likelihood on exact samples of p_r, always new ones."""
    every = problem.table.sequences()
    for part in range(10**9):
        seed_round(seed, part)
        rows = problem.solved.law.multinomial(100 * BATCH, replacement=True)
        cond = unconditional(len(rows))
        yield from explain(
            policy, every[rows], cond, optimizer, steps=100, batch=BATCH, seed=1000 * seed + part
        )


def fitted(table: Landscape, seed: int) -> tuple[nn.Module, dict[str, float]]:
    """A differentiable network of one-hot sequences that was fitted to the landscape, and how well."""
    torch.manual_seed(seed)
    letters = len(table.alphabet)

    class Surrogate(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = (letters * table.length, 256, 256)
            self.mlp = nn.Sequential(
                nn.Linear(*sizes[:2]), nn.SiLU(), nn.Linear(*sizes[1:]), nn.SiLU(), nn.Linear(256, 1)
            )

        def forward(self, x):
            return self.mlp(one_hot(x, letters).float().flatten(1))[:, 0]

    network = Surrogate()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    data, scores = table.sequences(), table.score.float()
    start = time.process_time()
    list(regress(network, data, scores, optimizer, steps=3000, batch=512, seed=seed))
    with torch.no_grad():
        guess = torch.cat([network(x) for x in data.split(2**14)])
    error = (guess - scores).square().mean().sqrt().item()
    return network.requires_grad_(False), {"rmse": error, "seconds": time.process_time() - start}


def biased(problem: Problem, policy: MaskedPolicy, surrogate: nn.Module) -> dict[str, float]:
    """How far the policy is from the optimum of what it was trained on."""
    with torch.no_grad():
        scores = torch.cat([surrogate(x) for x in problem.table.sequences().split(2**14)]).double()
    best = exact.solve(problem.objective, scores)
    found = exact.evaluate(problem.objective, policy, scores)
    wrong = exact.kl(best.law, problem.solved.law).item()
    return {
        "gap_by_surrogate_nats": (best.optimum - found.objective).item() / problem.alpha,
        "kl_of_its_optimum_nats": wrong,
    }


def baselines(problem: Problem, calls: int) -> dict[str, Any]:
    """What takes no training: p_pre, and the best of N of its samples, whose distribution is known."""
    law = exact.evaluate(problem.objective, problem.reference, problem.table.score).law
    rows: dict[str, Any] = {}
    for name, count in {"1": 1, "4": 4, "16": 16, "64": 64, "calls / 1000": calls // DELIVERED}.items():
        best = best_of(law, problem.table.score, count)
        kl = exact.kl(best, law).item()
        objective = (best @ problem.table.score).item() - problem.alpha * kl
        gap = (problem.solved.optimum.item() - objective) / problem.alpha
        rows[name] = {"n": count, "gap_nats": gap, "path_kl_nats": kl, **problem.compare(best)}
    return rows


def main() -> None:
    parser = options(__doc__, seconds=100)
    parser.add_argument("problems", nargs="+", help="LANDSCAPE-DATA-ALPHA, such as six6-lower-0.1")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in asked.problems:
        tune(make_problem(name, asked.models), RESULTS, asked)


def options(doc: str | None, seconds: float) -> argparse.ArgumentParser:
    """Those of any set of problems."""
    parser = argparse.ArgumentParser(description=str(doc).splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("runs/landscape"))
    parser.add_argument("--methods", nargs="+", default=["student", *METHODS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=seconds)
    return parser


def tune(problem: Problem, folder: Path, asked: argparse.Namespace) -> None:
    """Every method on every seed; results are written as they come, beside those of earlier calls."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{problem.name}.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    for seed in asked.seeds:
        for method in asked.methods:
            row = run(problem, method, seed, asked.seconds)
            end = row["curve"][-1]
            print(problem.name, method, seed, {k: round(v, 4) for k, v in end.items()}, flush=True)
            known = [old for old in known if (old["method"], old["seed"]) != (method, seed)] + [row]
            write(path, problem, known)


def write(path: Path, problem: Problem, runs: list[dict[str, Any]]) -> None:
    tuned = tunable(problem.reference, problem.table)
    trainable = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
    calls = max(run["curve"][-1]["calls"] for run in runs)
    solved = problem.solved
    reachable = exact.reachable(problem.objective, problem.table.score)
    content = {
        "problem": problem.name,
        "torch": torch.__version__,
        "parameters": trainable,
        "batch": BATCH,
        "learning_rate": RATE,
        "best_seen": best_seen(problem.table),
        "optimum": {
            "J": solved.optimum.item(),
            "kl_nats": solved.kl.item(),
            "gap_of_best_masked_nats": (solved.optimum - reachable).item() / problem.alpha,
            **problem.compare(solved.law),
        },
        "best_of_n": baselines(problem, calls),
        "runs": sorted(runs, key=lambda run: (run["method"], run["seed"])),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
