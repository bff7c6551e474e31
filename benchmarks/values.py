"""How exact soft values are, on a chain of 50 steps whose exact value is known by quadrature.

learned   values learned from chains that they guide themselves, against v_t: |error| / alpha at every t,
          averaged over p*'s distribution of x_t, then over t = 1, ..., T
squared   plain regression on chains of the reference: its |error| / alpha against E[r | x_t], averaged over
          the reference's distribution of x_t and over t, and how far E[r | x_t] and what was learned lie
          below v_t
guidance  exact reward, KL and total variation to p_r of chains steered by values that need no training:
          twisted by them at every step, or guided by their gradient

The data are 0.5 N(-2, 0.25) + 0.5 N(1, 0.25), the rewards x and sin 3x. Rows of other parts and
alphas in FILE.json stay. `seconds` are those of one thread.

    python benchmarks/values.py [--only PART ...] [--alphas ALPHA ...] [--seeds N] [--out FILE.json]
"""

import argparse
import dataclasses
import itertools
import json
import math
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fixed_rate import FIXED
from torch import Tensor

from difftilt import GaussianPolicy, Objective, PosteriorMean, ValueRegression, fit, unconditional
from difftilt.exact import grid as exact
from difftilt.exact.result import TableEvaluation
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.experiment.record import write_json
from difftilt.guidance.value_guided import ValueGuided
from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Value
from difftilt.policy import Policy, level
from difftilt.processes.noise import FixedLarge
from difftilt.training.settings import Training

REWARDS: dict[str, Callable[..., Tensor]] = {
    "gmm-sin": lambda x, c: torch.sin(3 * x[:, 0]),
    "gmm-x": lambda x, c: x[:, 0],
}
ALPHAS = (0.25, 0.5, 1.0)
AXIS, WIDE, FINE = exact.Axis(-6, 6, 301), exact.Axis(-8, 8, 641), exact.Axis(-6, 6, 961)
RATE = 1e-2
# few chains while the value is coarse; more, the sharper the tilt
BATCHES = {alpha: [256] * 14 + [1024] * 6 + [4096] * (6 if alpha < 0.5 else 0) for alpha in ALPHAS}
NETWORK: dict[str, Any] = {"width": 96, "octaves": 4, "minibatches": 160}
LONGEST_SLOPE = 20.0  # nats per unit, to which guidance is clipped while the value is learned
METHODS: dict[str, dict[str, Any]] = {
    "monte-carlo linex": {"target": "monte_carlo", "loss": "linex"},
    "bellman linex": {"target": "bellman", "loss": "linex", "target_decay": 0.95},
    "monte-carlo exponential": {"target": "monte_carlo", "loss": "exponential"},
    "bellman exponential": {"target": "bellman", "loss": "exponential", "target_decay": 0.95},
}
Row = dict[str, Any]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    rows: list[Row] = []
    if options.out and options.out.exists():
        old = json.loads(options.out.read_text())["rows"]
        rows = [row for row in old if row["part"] not in options.only or row["alpha"] not in options.alphas]
    for part in options.only:
        problems: list[tuple[str, float]] = list(itertools.product(REWARDS, options.alphas))
        for seed, (task, alpha) in itertools.product(range(options.seeds), problems):
            for row in PARTS[part](Objective(REWARDS[task], chain(), alpha), seed):
                rows.append({"part": part, "task": task, "alpha": alpha, **row})
                show(rows[-1])
                if options.out:
                    write_json(options.out, machine | {"rows": rows})


def chain() -> GaussianPolicy:
    """The perfect denoiser's chain."""
    levels = gmm_schedule()
    policy = GaussianPolicy(gmm(levels), levels, (1,), prediction_type="sample", noise=FixedLarge())
    return policy.double().requires_grad_(False)


def learned(objective: Objective, seed: int) -> Iterator[Row]:
    solved, law = exact.solve(objective, AXIS), laws(chain())
    tilted = (law.log() + solved.values / objective.alpha).softmax(1)
    for method, settings in METHODS.items():
        if settings["loss"] == "exponential" and (seed or objective.alpha != 0.5):
            continue  # for comparison: one seed, one alpha
        algorithm, row = trained(objective, ValueRegression(**NETWORK, **settings), seed, guided=True)
        off = (table(algorithm.value(objective)) - solved.values[1:]) / objective.alpha
        error = (tilted[1:] * off.abs()).sum(1)
        numbers = {"error_nats": error.mean().item(), "worst_nats": error.max().item()}
        yield {"method": method, **numbers, "worst_t": int(error.argmax()) + 1, **row}


def squared(objective: Objective, seed: int) -> Iterator[Row]:
    alpha, law = objective.alpha, laws(chain())[1:]
    value = exact.solve(objective, AXIS).values[1:]
    mean = exact.solve(Objective(objective.reward, objective.reference, 1e6), AXIS).values[1:]
    algorithm, row = trained(objective, ValueRegression(**NETWORK, loss="squared"), seed, guided=False)
    found = table(algorithm.value(objective))

    def average(x: Tensor) -> float:
        """In nats."""
        return ((law * x).sum(1).mean() / alpha).item()

    yield {
        "method": "squared",
        "error_nats": average((found - mean).abs()),
        "below_nats": average(value - found),
        "bound_below_nats": average(value - mean),
        **row,
    }


def trained(
    objective: Objective, algorithm: ValueRegression, seed: int, guided: bool
) -> tuple[ValueRegression, Row]:
    """A value after `fit` with Adam and a learning rate that falls to zero along a cosine."""
    torch.manual_seed(seed)
    algorithm.setup(objective.reference, unconditional(1))
    value, policy = algorithm.value(objective), objective.reference
    if guided:
        policy = ValueGuided(policy, objective, value, max_norm=LONGEST_SLOPE)
    optimizer = torch.optim.Adam([p for p in algorithm.parameters() if p.requires_grad], RATE, fused=True)
    calls, counter, began = objective.reward.calls, NetworkCalls(), time.process_time()
    batches = BATCHES[objective.alpha]
    with counter.watching([objective.reference.network]):
        for row in fit(
            policy,
            objective,
            algorithm,
            map(unconditional, batches),
            optimizer,
            Training(seed=seed, **FIXED),
        ):
            share = (row["round"] + 1) / len(batches)
            optimizer.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * share)) / 2
    return algorithm, {
        "seed": seed,
        "reward_calls": objective.reward.calls - calls,
        "network_calls": counter.forward,
        "seconds": time.process_time() - began,
        "settings": dataclasses.asdict(algorithm)
        | {"batches": batches, "learning_rate": RATE, "guided": guided},
    }


def guidance(objective: Objective, seed: int) -> Iterator[Row]:
    if seed:
        return  # nothing is random
    reference, solved = objective.reference, exact.solve(objective, WIDE)
    fine = exact.solve(objective, FINE)
    guided = ValueGuided(reference, objective, fine.value)
    yield {"method": "value, guided", **outcome(exact.evaluate(objective, guided, FINE), fine)}
    means = {order: PosteriorMean(objective, order=order) for order in (1, 2)}
    chains: dict[str, Policy] = {
        f"posterior mean, order {order}, guided at the {at}": ValueGuided(reference, objective, value, at=at)
        for order, value in means.items()
        for at in ("mean", "state")
    }
    for order, value in means.items():
        found = exact.twist(objective, value, WIDE)
        yield {"method": f"posterior mean, order {order}, twisted", **outcome(found, solved)}
    for method, policy in chains.items():
        yield {"method": method, **outcome(exact.evaluate(objective, policy, WIDE), solved)}
    yield {"method": "p*", "reward": solved.reward.item(), "kl_nats": solved.kl.item(), "tv": 0.0} | {
        "objective": solved.optimum.item()
    }


def outcome(found: TableEvaluation, solved: exact.Solution) -> Row:
    return {
        "reward": found.reward.item(),
        "tv": ((found.law - solved.law).abs().sum() / 2).item(),
        "kl_nats": found.kl.item(),
        "objective": found.objective.item(),
    }


def laws(policy: GaussianPolicy) -> Tensor:
    """The distribution of x_t at the points, for t = 0, ..., T."""
    x = AXIS.x[:, None]
    start = policy.initial(unconditional(1))
    found = [AXIS.log_kernel(start.mean[:, 0], start.std[:, 0]).exp()[0]]
    for t in range(policy.steps, 0, -1):
        step = policy(x, level(x, t), unconditional(len(x)))
        found.append(found[-1] @ AXIS.log_kernel(step.mean[:, 0], step.std[:, 0]).exp())
    return torch.stack(found[::-1])


@torch.no_grad()
def table(value: Value) -> Tensor:
    """v_t at the points, for t = 1, ..., T."""
    x = AXIS.x[:, None]
    return torch.stack([value(x, level(x, t), unconditional(len(x))).double() for t in range(1, 51)])


def show(row: Row) -> None:
    hidden = ("settings", "reward_calls", "network_calls")
    print(
        *(f"{k} {v:.4f}" if isinstance(v, float) else v for k, v in row.items() if k not in hidden),
        flush=True,
    )


PARTS: dict[str, Callable[[Objective, int], Iterator[Row]]] = {
    "guidance": guidance,
    "learned": learned,
    "squared": squared,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--alphas", nargs="+", type=float, choices=ALPHAS, default=ALPHAS, metavar="ALPHA")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
