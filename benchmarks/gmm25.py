"""The published task of 25 Gaussians, of which 9 shall remain, each with a weight of its own.

Prior: 25 equal components N(mode, 0.3 I) on the grid {-10, -5, 0, 5, 10}^2. Posterior: 9 of them with weights
(4, 10, 4, 5, 10, 5, 4, 15, 4) / 61. The reward is log posterior - log prior, alpha is 1, so log Z = 0 and the
best path KL is that of the posterior to the prior, 1.1546 nats. The reward ends at -10, which leaves a
probability of 3e-5 on all removed components together. The chain has 100 steps and the exact denoiser of the
prior, in coordinates divided by 7.

    python benchmarks/gmm25.py [--algorithms NAME ...] [--seeds N] [--minutes M] [--out FILE.json]

Source:
    Venkatraman et al. (2024), https://arxiv.org/abs/2405.20971
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fixed_rate import FIXED

from difftilt import (
    Algorithm,
    GaussianPolicy,
    Objective,
    PathConsistency,
    RewardWeighted,
    TrajectoryBalance,
    fit,
    unconditional,
)
from difftilt.exact.toy import MixtureDenoiser, Residual
from difftilt.experiment.record import to_json, write_json
from difftilt.networks.network_calls import NetworkCalls
from difftilt.processes.schedule import NoiseSchedule
from difftilt.training.ema import EMA
from difftilt.training.settings import Training

SCALE, VARIANCE, STEPS, FLOOR = 7.0, 0.3, 100, -10.0
MODES = torch.cartesian_prod(*[torch.tensor([-10.0, -5.0, 0.0, 5.0, 10.0])] * 2)
KEPT = {(-10, -5): 4, (-5, -10): 10, (-5, 0): 4, (10, -5): 5, (0, 0): 10, (0, 5): 5, (5, -5): 4, (5, 0): 15,
        (5, 10): 4}  # fmt: skip
WEIGHTS = torch.tensor([float(KEPT.get((int(a), int(b)), 0)) for a, b in MODES.tolist()]) / 61
BATCH, RATE, OWN_RATE = 512, 1e-2, 1e-2
ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "reward-weighted": lambda: RewardWeighted(epochs=2, minibatches=8),
    "trajectory-balance": lambda: TrajectoryBalance(explore=0.2, temperature=1.2, recompute=False),
    "path-consistency": lambda: PathConsistency(
        pairs="full", explore=0.2, temperature=1.2, replay=2048, recompute=False
    ),
}


def log_density(x: torch.Tensor, log_weight: torch.Tensor) -> torch.Tensor:
    """Up to the constant that prior and posterior share."""
    return (log_weight - ((x[:, None] - MODES) ** 2).sum(2) / (2 * VARIANCE)).logsumexp(1)


def reward(x: torch.Tensor, cond: object) -> torch.Tensor:
    prior = torch.full((25,), -math.log(25))
    return (log_density(x, WEIGHTS.log()) - log_density(x, prior)).clamp(min=FLOOR)


def levels() -> NoiseSchedule:
    """Variance preserving, its noise-to-data ratio geometric from 0.01 to 30."""
    ratio = torch.logspace(math.log10(0.01), math.log10(30), STEPS + 1, dtype=torch.float64)
    alpha = (1 + ratio**2).rsqrt()
    return NoiseSchedule(torch.arange(STEPS + 1), alpha.float(), (alpha * ratio).float())


def chain(tuned: bool) -> GaussianPolicy:
    grid = levels()
    network: torch.nn.Module = MixtureDenoiser(grid, MODES / SCALE, VARIANCE / SCALE**2)
    if tuned:
        network = Residual(network, grid, 2, width=128, waves=4)
    return GaussianPolicy(network, grid, (2,), prediction_type="sample", decode=lambda x, cond: SCALE * x)


def measure(policy: GaussianPolicy, objective: Objective, count: int) -> dict[str, float]:
    """By samples: how far the weights of the components are off, and what the path costs."""
    calls = objective.reward.calls
    seen = objective.sample(policy, unconditional(count))
    objective.reward.calls = calls
    nearest = torch.cdist(seen.path.sample, MODES).argmin(1)
    share = torch.bincount(nearest, minlength=25) / count
    stats = {name: value.item() for name, value in seen.stats().items()}
    return {"mode_tv": ((share - WEIGHTS).abs().sum() / 2).item(), **stats}


def run(name: str, seed: int, minutes: float, rounds: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    reference, policy = chain(False).requires_grad_(False), chain(True)
    objective, algorithm, counter = Objective(reward, reference, 1.0), ALGORITHMS[name](), NetworkCalls()
    algorithm.setup(policy, unconditional(2))
    groups = [
        {"params": [p for p in module.parameters() if p.requires_grad], "lr": rate, "full": rate}
        for module, rate in ((policy, RATE), (algorithm, OWN_RATE))
    ]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    average, curve, spent, seen = EMA(policy, 0.995), [], 0.0, -1
    start = time.perf_counter()
    with counter.watching([reference.network, policy.network]):
        for row in fit(
            policy,
            objective,
            algorithm,
            [unconditional(BATCH)] * rounds,
            optimizer,
            Training(seed=seed, **FIXED),
        ):
            average.update()
            left = 1 - (row["round"] + 1) / rounds
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * min(1, 2 * left + 1e-3)
            if row["round"] != seen and row["round"] % 25 == 0:
                seen, spent = row["round"], spent + time.perf_counter() - start
                with average.applied():
                    point = {"round": seen, "seconds": spent, "reward_calls": objective.reward.calls}
                    curve.append(point | measure(policy, objective, 4000))
                show(f"  round {seen:.0f}", curve[-1], spent)
                start = time.perf_counter()
            if spent + time.perf_counter() - start > 60 * minutes:
                break
    spent += time.perf_counter() - start
    calls = {"forward": counter.forward, "backward": counter.backward}
    with average.applied():
        final = measure(policy, objective, 20_000)
    show(f"{name} seed {seed}", final, spent)
    return {
        "task": "gmm25",
        "algorithm": name,
        "seed": seed,
        "alpha": 1.0,
        "optimum": 0.0,
        "gap_nats": -final["objective"],
        **final,
        "reward_calls": objective.reward.calls,
        "network_calls": calls,
        "seconds": spent,
        "curve": curve,
        "settings": to_json(algorithm) | {"batch": BATCH, "rounds": rounds, "learning_rate": RATE},
    }


def show(label: str, found: dict[str, float], seconds: float) -> None:
    print(
        f"{label:26} TV {found['mode_tv']:.4f}  path KL {found['kl_nats']:.4f} ± {found['kl_nats_se']:.4f}"
        f" nats (best 1.1546)  J {found['objective']:.4f} (best 0)  {seconds:.0f} s",
        flush=True,
    )


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    for name in options.algorithms:
        for seed in range(options.first, options.first + options.seeds):
            rows = [row for row in rows if (row["algorithm"], row["seed"]) != (name, seed)]
            rows.append(run(name, seed, options.minutes, options.rounds))
            if options.out:
                write_json(options.out, machine | {"rows": rows})


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=["reward-weighted"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--minutes", type=float, default=15, help="of training, per run")
    parser.add_argument("--rounds", type=int, default=850, help="over which the learning rate falls")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
