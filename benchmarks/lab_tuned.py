"""Learned rewards with a network that is tuned towards them, beside the exact tilt by the same reward.

    python benchmarks/lab_tuned.py [--only offline lab] [--landscape six6] [--rules ladder genetic ...]
        [--seeds 0 1 2] [--seconds 60]

adds rows to results/lab_tuned.json. `offline` learns from 1,000 labels of the lower half, at alpha .1, as
benchmarks/learned.py does. `lab` goes through six plates of 96 after 96 labels of the pretrained model's
samples, at alpha .05, with the plates that `difftilt lab propose` would fill: candidates are drawn by
sequential Monte Carlo, and any two differ by two letters. In the end PPO, with the settings of
benchmarks/landscape.py, tunes towards the mean of what was learned for --seconds of the processor. Both
policies are judged by the true reward of every sequence.
"""

import argparse
import time
from pathlib import Path
from typing import Any, Literal

import landscape
import torch
from lab import ALPHA, BATCH, ROUNDS, TOP, add
from learned import ensemble, make_world, measured
from torch import Tensor

from difftilt.conditions import unconditional
from difftilt.domains.landscape.recipe import dna
from difftilt.exact import landscape as exact
from difftilt.lab.propose import Asked, RuleName, checked, fill
from difftilt.policy import rollout
from difftilt.rewards.learned import Belief, Labels
from difftilt.training.seeds import EVALUATION, seed_round
from difftilt.transition import tokens

Name = Literal["six6", "pax6", "egr2"]
RESULTS = Path(__file__).parent / "results" / "lab_tuned.json"
MODELS = Path("runs/landscape")
NOISE, LABELS, OFFLINE_ALPHA, START = 0.05, 1000, 0.1, 96


def offline(name: Name, seed: int, seconds: float) -> dict[str, Any]:
    """Labels of the lower half, and no more of them."""
    world, generator = make_world(name), torch.Generator().manual_seed(seed)
    rows = world.pool[torch.randperm(len(world.pool), generator=generator)][:LABELS]
    labels = measured(world, rows, NOISE, generator)
    problem = landscape.make_problem(f"{name}-lower-{OFFLINE_ALPHA}", MODELS)
    about = {"task": f"offline-{name}", "rule": "mean", "start": LABELS}
    return about | ended(problem, labels, ensemble(world, seed).fit(labels), seed, seconds)


def lab(name: Name, rule: RuleName, seed: int, seconds: float) -> dict[str, Any]:
    """Plate after plate, as `difftilt lab` would have them measured."""
    began, problem = time.process_time(), landscape.make_problem(f"{name}-lower-{ALPHA}", MODELS)
    job = dna(landscape=name, alpha=ALPHA)
    chain, language = checked(job, both_strands=True)
    seed_round(seed, EVALUATION)
    x = rollout(chain, unconditional(START)).sample.unique(dim=0)
    labels = assayed(problem, x)
    for number in range(ROUNDS):
        asked = Asked(rule, BATCH, number, ROUNDS, ALPHA, both_strands=True, seed=seed)
        more = assayed(problem, fill(job, labels, labels.sample, asked).batch.sample)
        labels = Labels(torch.cat([labels.sample, more.sample]), torch.cat([labels.score, more.score]))
    belief = language.learner(seed=seed).fit(labels)
    about = {"task": f"lab-{name}", "rule": rule, "start": START}
    about["seconds"] = round(time.process_time() - began, 1)
    return about | ended(problem, labels, belief, seed, seconds)


def assayed(problem: landscape.Problem, x: Tensor) -> Labels:
    true = problem.table.lookup(x, {})
    return Labels(x, true + NOISE * torch.randn_like(true))


def ended(
    problem: landscape.Problem, labels: Labels, belief: Belief, seed: int, seconds: float
) -> dict[str, Any]:
    """The tilt by what is believed, and the network that PPO tunes towards it."""
    with torch.no_grad():
        mean = torch.cat([belief(x).mean for x in problem.table.sequences().split(4096)])
    tilt = exact.solve(problem.objective, mean.double()).law
    model = exact.evaluate(problem.objective, problem.reference, problem.table.score).law
    gap = (problem.solved.optimum.item() - (tilt @ problem.table.score).item()) / problem.alpha
    row = landscape.run(problem, "ppo", seed, seconds, lambda x, _: mean[problem.table.index(tokens(x))])
    return {
        "noise": NOISE,
        "seed": seed,
        "alpha": problem.alpha,
        "top_mean": [problem.table.lookup(labels.sample, {}).topk(TOP).values.mean().item()],
        "gap_of_tilt_nats": gap + exact.kl(tilt, model).item(),
        "gap_nats": [row["curve"][-1]["gap_nats"]],
        "reward": row["curve"][-1]["reward"],
        "kl_nats": row["curve"][-1]["path_kl_nats"],
        "tuned_seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["offline", "lab"], choices=["offline", "lab"])
    parser.add_argument("--landscape", default="six6", choices=["six6", "pax6", "egr2"])
    parser.add_argument("--rules", nargs="+", default=["ladder", "genetic", "greedy", "random"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for seed in given.seeds:
        if "offline" in given.only:
            add(given.out, offline(given.landscape, seed, given.seconds))
        for rule in given.rules if "lab" in given.only else ():
            add(given.out, lab(given.landscape, rule, seed, given.seconds))


if __name__ == "__main__":
    main()
