"""What it costs to keep the distribution of x_T, and that tuning it removes the cost.

sticky      a 6-state chain of 5 steps that stays with probability P: distance of its best distribution from
p_r noise       8-step chains of a 2-D Gaussian by kind and noise level: nats that a frozen start costs ddim8
the 8-step DDIM chain with eta = 0.3, trained with a frozen and with a tuned start flow8       the 8-step flow
with Flow-GRPO's Euler step at noise level 0.3, likewise

`gap_nats` is (alpha log Z - J) / alpha, and `bound_nats` the least gap of a policy that keeps the
distribution of x_T; both are exact. `measured_nats` is what `frozen_start` says of the reference from
samples, as `memory` is in the last two tasks. Rows of other tasks in FILE.json stay.

    python benchmarks/frozen_start.py [--only TASK ...] [--seeds N] [--out FILE.json]
"""

import argparse
import dataclasses
import json
import math
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from fixed_rate import FIXED

from difftilt import (
    Backprop,
    Diffusion,
    GaussianPolicy,
    NoiseSchedule,
    Objective,
    Policy,
    fit,
    unconditional,
)
from difftilt.evaluation.diagnostics import frozen_start
from difftilt.exact import gaussian, tabular
from difftilt.exact.toy import AffineResidual, GaussianDenoiser, Velocity
from difftilt.guidance.start import TunedStart
from difftilt.networks.network_calls import NetworkCalls
from difftilt.processes.noise import DDIM, MEMORYLESS, Euler, FlowSDE, Noise
from difftilt.processes.schedule import linear, shifted_flow
from difftilt.training.settings import Training

STEPS, ALPHA = 8, 0.5
EULER = Euler(0.3)
F64 = torch.float64
SCORE = torch.tensor([0, 1, 1, 1, 1, 3], dtype=F64)
REWARD = gaussian.bowl(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
BATCH, ROUNDS, RATE = 512, 100, 3e-2
Row = dict[str, Any]


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    head = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": options.threads,
    }
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    rows = [row for row in rows if row["task"] not in options.only]
    for task in options.only:
        for row in TASKS[task](options.seeds):
            rows.append({"task": task, **row})
            shown = {k: v for k, v in row.items() if not isinstance(v, dict)}
            print(task, *(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()))
            sys.stdout.flush()
            if options.out:
                options.out.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")


def sticky(seeds: int) -> Iterator[Row]:
    for stay in (0.0, 0.5, 0.9, 0.99, 1.0):
        objective = Objective(lambda x, c: SCORE[x[:, 0]], tabular.sticky(6, 5, stay), ALPHA)
        solved = tabular.solve(objective)
        target = (SCORE / ALPHA).softmax(0)
        distance = {
            name: (tabular.evaluate(objective, policy).laws[0] - target).abs().sum().item() / 2
            for name, policy in (("frozen", solved.frozen_policy), ("tuned", solved.policy))
        }
        yield {
            "stay": stay,
            "alpha": ALPHA,
            "tv_frozen": distance["frozen"],
            "tv_tuned": distance["tuned"],
            "bound_nats": ((solved.optimum - solved.frozen) / ALPHA).item(),
        }


def noise(seeds: int) -> Iterator[Row]:
    kinds: dict[str, tuple[tuple[float, ...], Callable[[float], Diffusion]]] = {
        "ddim": ((0.1, 0.3, 0.5, 0.7, 1.0), lambda level: ddim(False, level)),
        "flow-euler": ((0.1, 0.3, 0.7, MEMORYLESS), lambda level: flow(False, Euler(level))),
        "flow-exponential": (
            (0.1, 0.3, 0.7, MEMORYLESS),
            lambda level: flow(False, FlowSDE(level)),
        ),
    }
    for kind, (levels, make) in kinds.items():
        for level in levels:
            read = gaussian.affine(make(level).double())
            turn = torch.linalg.multi_dot([*read.weight])
            whole = gaussian.evaluate(read, read, REWARD, ALPHA).cov.trace()
            memory = (turn @ read.cov @ turn.T).trace() / whole
            yield {
                "kind": kind,
                "noise_level": level,
                "alpha": ALPHA,
                "bound_nats": bound(read),
                "memory": memory.item(),
            }


def ddim(tuned: bool, eta: float = 0.3) -> GaussianPolicy:
    levels = told_the_index(linear(999).take(torch.linspace(49, 999, STEPS + 1).round().long()))
    network = denoiser(levels, tuned, levels.sigma**2)
    return GaussianPolicy(network, levels, (2,), noise=DDIM(eta), prediction_type="sample", tune_std=tuned)


def flow(tuned: bool, noise: Noise = EULER) -> GaussianPolicy:
    levels = told_the_index(shifted_flow(STEPS, sigma_min=0.05))
    network = Velocity(denoiser(levels, tuned, levels.sigma.roll(1) ** 2), levels)
    return GaussianPolicy(
        network, levels, (2,), noise=noise, prediction_type="flow_prediction", tune_std=tuned
    )


def told_the_index(levels: NoiseSchedule) -> NoiseSchedule:
    return dataclasses.replace(levels, time=torch.arange(STEPS + 1))


def denoiser(levels: NoiseSchedule, tuned: bool, scale: torch.Tensor) -> torch.nn.Module:
    base = GaussianDenoiser(levels, torch.tensor([1.0, -0.5]), 0.5 * torch.eye(2))
    return AffineResidual(base, scale, 2, terms=STEPS + 1) if tuned else base


def bound(reference: gaussian.AffineChain) -> float:
    """Nats that the best policy with the reference's distribution of x_T stays below alpha log Z."""
    solved = gaussian.solve(reference, REWARD, ALPHA)
    return ((solved.optimum - solved.frozen) / ALPHA).item()


def trained(make: Callable[[bool], Diffusion]) -> Callable[[int], Iterator[Row]]:
    def rows(seeds: int) -> Iterator[Row]:
        for start in ("frozen", "tuned"):
            for seed in range(seeds):
                yield run(make, start, seed)

    return rows


def run(make: Callable[[bool], Diffusion], start: str, seed: int) -> Row:
    torch.manual_seed(seed)
    reference, policy = make(False).requires_grad_(False), make(True)
    measured = frozen_start(Objective(REWARD, reference, ALPHA), unconditional(1), starts=500, repeats=32)
    if start == "tuned":
        policy = TunedStart(policy)
    objective, algorithm, counter = (
        Objective(REWARD, reference, ALPHA),
        Backprop(recompute=False),
        NetworkCalls(),
    )
    began = time.perf_counter()
    with counter.watching([reference.network, policy.network]):
        train(policy, objective, algorithm, seed)
    seconds = time.perf_counter() - began
    base = gaussian.affine(reference.double())
    with torch.no_grad():
        found = gaussian.evaluate(gaussian.affine(policy.double()), base, REWARD, ALPHA)
    optimum = gaussian.solve(base, REWARD, ALPHA).optimum.item()
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "algorithm": "backprop",
        "start": start,
        "seed": seed,
        "alpha": ALPHA,
        "gap_nats": (optimum - found.objective.item()) / ALPHA,
        "bound_nats": bound(base),
        "measured_nats": measured.bias.value,
        "measured_se": measured.bias.se,
        "memory": measured.memory.value,
        "objective": found.objective.item(),
        "optimum": optimum,
        "reward": found.reward.item(),
        "kl_nats": found.kl.item(),
        "reward_calls": objective.reward.calls,
        "network_calls": {"forward": counter.forward, "backward": counter.backward},
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
        "settings": dataclasses.asdict(algorithm)
        | {"batch": BATCH, "rounds": ROUNDS, "learning_rate": RATE, "steps": STEPS},
    }


def train(policy: Policy, objective: Objective, algorithm: Backprop, seed: int) -> None:
    """`fit` with Adam and a learning rate that falls to zero along a cosine."""
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], RATE)
    for row in fit(
        policy,
        objective,
        algorithm,
        [unconditional(BATCH)] * ROUNDS,
        optimizer,
        Training(seed=seed, **FIXED),
    ):
        share = (row["round"] + 1) / ROUNDS
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * share)) / 2


TASKS = {"sticky": sticky, "noise": noise, "ddim8": trained(ddim), "flow8": trained(flow)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
