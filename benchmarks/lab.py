"""The lab in the loop, judged where the true reward of every sequence is known.

    python benchmarks/lab.py [--only six6 pax6 gb1] [--rules ladder genetic ...] [--seeds 0 1 2 3]
        [--noise 0.05] [--start 96]

adds rows to results/lab.json: START labels of the pretrained distribution, then six batches of 96 that a rule
asks for, each time learned from anew by an ensemble of five. What is drawn, and what is judged, are exact
tilts of the pretrained distribution, so a gap is due to the rule and to what was learned. Each number of a
row is a list, one entry per round: the gap to the optimum in nats of the mean's tilt, its true and its
modelled reward, its KL, over how many sequences it spreads (exp of its entropy), the mean of the ten best
that were measured, and of the last batch the true mean and how many letters of two sequences differ.

The rules are those of rewards/queries.py; genetic, adalead and library those of rewards/mutants.py. All rules
of one seed begin with the same labels. The data sets are found as everywhere (DIFFTILT_DATA); SIX6 ships, and
PAX6 takes `difftilt pretrain dna --landscape pax6`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from learned import World, ensemble, make_world, measured
from torch import Tensor

from difftilt.data.vocabulary import place_values
from difftilt.rewards.learned import Belief, Labels, Prediction
from difftilt.rewards.mutants import AdaLead, Genetic, Proposer, TopOfLibrary
from difftilt.rewards.queries import RULES, parts
from difftilt.shapes import Sequences

RESULTS = Path(__file__).parent / "results" / "lab.json"
ALPHA, BATCH, ROUNDS, TOP, MEMBERS = 0.05, 96, 6, 10, 5
KEYS = ("task", "rule", "noise", "start", "seed")
PROPOSERS: dict[str, Callable[[World, Callable[[Sequences], Sequences]], Proposer]] = {
    "genetic": lambda world, settle: Genetic(world.letters, settle),
    "adalead": lambda world, settle: AdaLead(world.letters, settle),
    "library": lambda world, settle: TopOfLibrary(world.x),
}


def loop(world: World, rule: str, seed: int, noise: float, start: int) -> dict[str, Any]:
    """One rule from the first labels to the last."""
    generator = torch.Generator().manual_seed(100 + seed)
    began, rows = time.process_time(), drawn(world.log_pre, start, torch.empty(0).long(), generator)
    labels, found = measured(world, rows, noise, generator), list[dict[str, float]]()
    for number in range(ROUNDS + 1):
        belief = ensemble(world, seed, MEMBERS).fit(labels)
        guess = world.predict(belief)
        found.append(state(world, guess.mean.double(), rows))
        if number == ROUNDS:
            break
        if rule in PROPOSERS:
            propose = PROPOSERS[rule](world, lambda x: settled(world, x))
            new = rows_of(world, propose(labels, belief, BATCH, generator))
        else:
            new = asked(world, rule, guess, number, rows, generator)
        more = measured(world, new, noise, generator)
        rows = torch.cat([rows, new])
        labels = Labels(world.x[rows], torch.cat([labels.score, more.score]))
    about = {"task": f"lab-{world.name}", "rule": rule, "noise": noise, "start": start, "seed": seed}
    numbers = {name: [round(row[name], 4) for row in found] for name in found[0]}
    return about | {"alpha": ALPHA, **numbers, "seconds": round(time.process_time() - began, 1)}


def state(world: World, mean: Tensor, rows: Tensor) -> dict[str, float]:
    """What a round has reached."""
    law, last = world.tilt(mean, ALPHA), world.x[rows[-BATCH:]]
    apart = (last[:, None] != last).sum(2).double()
    return {
        **world.judge(law, ALPHA),
        "modelled_reward": (law @ mean).item(),
        "spread": torch.special.entr(law).sum().exp().item(),
        "top_mean": world.reward[rows].topk(TOP).values.mean().item(),
        "batch_mean": world.reward[rows[-BATCH:]].mean().item(),
        "batch_distance": (apart.sum() / (len(last) * (len(last) - 1))).item(),
    }


def asked(
    world: World, rule: str, guess: Prediction, number: int, rows: Tensor, generator: torch.Generator
) -> Tensor:
    """The next batch: for every query its part of it, drawn from the tilt without replacement.

    Args:
        guess: What is believed of everything, and of nothing else.
    """
    belief = Belief(lambda sample: guess, members=len(guess.members))
    queries = RULES[rule](belief, ALPHA, number, ROUNDS, generator)
    seen = rows
    for query, count in zip(queries, parts(queries, BATCH), strict=True):
        logits = world.log_pre
        if query.reward is not None:
            logits = logits + query.reward(world.x, {}).double() / query.alpha
        seen = torch.cat([seen, drawn(logits, count, seen, generator)])
    return seen[len(rows) :]


def drawn(logits: Tensor, count: int, seen: Tensor, generator: torch.Generator) -> Tensor:
    """Rows that were not seen: the largest of logits with Gumbel noise are draws without replacement."""
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    return (logits + noise).index_fill(0, seen, -torch.inf).topk(count).indices


def rows_of(world: World, x: Sequences) -> Tensor:
    """Where each sequence stands in a world; -1 if it was never measured."""
    value = place_values(world.letters, x.shape[1])
    table = torch.full((world.letters ** x.shape[1],), -1)
    table[(world.x * value).sum(1)] = torch.arange(len(world.x))
    twin = 3 - x.flip(1) if world.letters == 4 else x
    return table[torch.minimum((x * value).sum(1), (twin * value).sum(1))]


def settled(world: World, x: Sequences) -> Sequences:
    """Those of a world, each as it stands there."""
    rows = rows_of(world, x)
    return world.x[rows[rows >= 0]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", default=["six6", "pax6", "gb1"])
    parser.add_argument("--rules", nargs="+", default=[*RULES, *PROPOSERS], choices=[*RULES, *PROPOSERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3])
    parser.add_argument("--noise", nargs="+", type=float, default=[0.05])
    parser.add_argument("--start", nargs="+", type=int, default=[96])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for world in map(make_world, given.only):
        for seed in given.seeds:
            for noise in given.noise:
                for start in given.start:
                    for rule in given.rules:
                        add(given.out, loop(world, rule, seed, noise, start))


def add(path: Path, new: dict[str, Any]) -> None:
    """Puts a row in the place of that of the same setting, and prints it."""
    print(*(new[key] for key in KEYS), "gap", new["gap_nats"], "top", new["top_mean"][-1], flush=True)
    known = json.loads(path.read_text())["rows"] if path.exists() else []
    known = [row for row in known if any(row[key] != new[key] for key in KEYS)]
    path.write_text(json.dumps({"torch": torch.__version__, "rows": [*known, new]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
