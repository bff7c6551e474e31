"""Algorithms and samplers on the shipped model of molecules, at equal calls of the reward.

Tuning has ROUNDS rounds of BATCH samples at the settings of the recipe, whichever the algorithm. A sampler
may ask the reward as often, and delivers DELIVERED samples. All is measured on samples that were not learned
from: reward, KL and J as everywhere, the shares of molecules (valid), of different ones among these (unique)
and of different scaffolds, and their mean Tanimoto distance. `pretrained` is where all begin; `ppo-filtered`
makes scaffolds that were drawn often earn less while it trains.

    python benchmarks/molecules.py [--methods NAME ...] [--seeds N] [--reward NAME] [--alpha A]
                                   [--out FILE.json]

With `--table` what FILE.json holds is printed as a table, means over seeds with their standard errors.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch
from rounds import train

from difftilt import PPO, unconditional
from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.data.chemistry import canonical
from difftilt.domains.molecules.model import load_molecules
from difftilt.domains.molecules.recipe import ALGORITHM, TRAINING, molecules
from difftilt.domains.molecules.view import internal_diversity
from difftilt.evaluation.estimate import Estimate, mean
from difftilt.evaluation.evaluate import evaluate
from difftilt.experiment.job import Job
from difftilt.experiment.record import write_json
from difftilt.rewards.molecule import readable, scaffold
from difftilt.samplers.base import Sampler
from difftilt.samplers.best_of_n import BestOfN
from difftilt.samplers.smc import SMC
from difftilt.samplers.svdd import SVDD
from difftilt.shapes import State
from difftilt.training.seeds import seed_round
from difftilt.values.tweedie import PosteriorMean

ROUNDS, BATCH, DELIVERED, EVALUATED = 12, 64, 64, 512
FILTER: dict[str, Any] = {"diversity_filter": "scaffold", "diversity_bucket": 5}
STRENGTH = 0.05  # of the filter, in units of the reward
Row = dict[str, Any]
TUNED: dict[str, AnyAlgorithm] = {
    "ppo": ALGORITHM,
    "ppo-filtered": ALGORITHM,
    "ppo-epochs": PPO(),
    "grpo": GRPO(group_size=16),
    "reward-weighted": RewardWeighted(),
    "trajectory-balance": TrajectoryBalance(),
}
STEERED = ("best-of-n", "smc", "svdd")


def job_of(method: str, reward: str, alpha: float, seed: int) -> Job:
    training = dataclasses.replace(TRAINING, rounds=ROUNDS, batch=BATCH, seed=seed)
    if method == "ppo-filtered":
        training = dataclasses.replace(training, **FILTER, diversity_strength=STRENGTH / alpha)
    return molecules(TUNED.get(method, ALGORITHM), reward=reward, alpha=alpha, training=training)


def sampler(method: str, calls: int, steps: int) -> Sampler:
    """One that asks the reward so often for each sample that it delivers, as nearly as it can.

    Args:
        steps: Of the chain, at each of which those that look ahead ask.
    """
    if method == "best-of-n":
        return BestOfN(n=calls)
    if method == "smc":
        return SMC(particles=max(2, round(calls * DELIVERED / (steps + 1))), keep="all")
    return SVDD(candidates=max(2, round(calls / (steps + 1))))


def run(method: str, reward: str, alpha: float, seed: int) -> Row:
    """One method, and what was measured of it."""
    job, busy = job_of(method, reward, alpha, seed), time.process_time()
    if method in STEERED:
        calls = ROUNDS * BATCH // DELIVERED
        chosen = sampler(method, calls, job.policy.steps)
        seed_round(seed, 2)
        count = 1 if isinstance(chosen, SMC) else DELIVERED
        drawn = chosen.draw(job.objective, PosteriorMean(job.objective, draws=1), unconditional(count))
        numbers, sample, asked = drawn.summary(), drawn.sample, drawn.reward_calls
        seconds = time.process_time() - busy
    else:
        if method != "pretrained":
            for _ in train(job):
                pass
        asked, seconds = job.objective.reward.calls, time.process_time() - busy
        seen = evaluate(job.policy, job.objective, unconditional(EVALUATED), job.gold, seed=seed)
        numbers, sample = seen.summary(), seen.sample
    names = [name for key in ("reward", "kl_nats", "objective") for name in (key, f"{key}_se")]
    return {
        "method": method, "reward_name": reward, "alpha": alpha, "seed": seed,
        **{name: numbers[name] for name in names}, **shares(sample),
        "reward_calls": asked, "cpu_seconds": seconds,
    }  # fmt: skip


def shares(sample: State) -> Row:
    """What the samples are as a set of molecules."""
    _, writing = load_molecules()
    found = readable(writing.spell(sample))
    count = max(len(found), 1)
    return {
        "samples": len(sample),
        "valid": len(found) / len(sample),
        "unique": len({canonical(one) for one in found}) / count,
        "scaffolds": len({scaffold(one) for one in found}) / count,
        "diversity": internal_diversity(found),
    }


def table(rows: list[Row]) -> str:
    """Means over seeds, in Markdown."""
    columns = {
        "objective": "J", "reward": "reward", "kl_nats": "KL, nats", "valid": "valid", "unique": "unique",
        "scaffolds": "scaffolds", "diversity": "distance", "reward_calls": "calls", "cpu_seconds": "CPU s",
    }  # fmt: skip
    lines = [f"| alpha | method | {' | '.join(columns.values())} |", "| --- " * (len(columns) + 2) + "|"]
    for alpha, method in dict.fromkeys((row["alpha"], row["method"]) for row in rows):
        own = [row for row in rows if (row["alpha"], row["method"]) == (alpha, method)]
        cells = [figures(mean([row[name] for row in own])) for name in columns]
        lines.append(f"| {alpha:g} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figures(number: Estimate) -> str:
    return str(number) if 1e-3 < number.value < 50 else f"{number.value:,.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    names = ("pretrained", *TUNED, *STEERED)
    parser.add_argument("--methods", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--reward", default="druglike")
    parser.add_argument("--alpha", type=float, default=0.07)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", action="store_true", help="print what the file holds, and run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = (
        json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    )
    if options.table:
        print(table(rows))
        return
    for method in options.methods:
        for seed in range(options.seeds):
            row = run(method, options.reward, options.alpha, seed)
            keys = ("method", "reward_name", "alpha", "seed")
            rows = [other for other in rows if any(other[key] != row[key] for key in keys)] + [row]
            print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
            if options.out:
                write_json(options.out, {"torch": torch.__version__, "rows": rows})


if __name__ == "__main__":
    main()
