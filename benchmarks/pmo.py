"""PMO: how good the best ten molecules are, over the first 10,000 that are scored (Gao et al., 2022).

    python benchmarks/pmo.py [--tasks NAME ...] [--methods NAME ...] [--seeds 0 1 2] [--model FOLDER]
                             [--out FILE]

Every run begins with the pretrained model, the shipped one by default, and ends after 10,000 different
molecules, ASKED texts or SECONDS of processor time, whichever comes first; what it has found by then counts
to the end. Settings were tried on 1,500 calls of celecoxib_rediscovery alone, one seed.
Rows of other runs in FILE stay.
"""

import argparse
import json
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fixed_rate import FIXED
from pmo_oracles import CALLS, TASKS, Oracle, area, top_curve
from rounds import train

from difftilt.algorithms.local_search import LocalSearch
from difftilt.answers import BudgetSpent
from difftilt.domains.molecules.model import chain_of, load_molecules
from difftilt.domains.molecules.recipe import ALGORITHM
from difftilt.experiment.job import Job, tune
from difftilt.experiment.record import write_json
from difftilt.objective import Algorithm, Experience
from difftilt.shapes import Cond, PerSample, State
from difftilt.training.settings import Training

OUT = Path(__file__).parent / "results" / "pmo.json"
ASKED, SECONDS = 5 * CALLS, 900.0
PLAIN: dict[str, Any] = {"rounds": ASKED, "schedule": "constant", "cache": True, **FIXED}
Row = dict[str, Any]


class Search(LocalSearch):
    """Searches and imitates to the end, what scores high alone.

    Finds stand for exp(r / alpha), not for p_r, whose p_pre would cost a pass per token of each find.
    """

    def _count(self, now: Any, x_0: State, cond: Cond, reward: PerSample) -> None:
        if len(x_0):
            context = now.finds.contexts(cond)
            rows = now.finds.fresh(x_0, context)
            rows = rows[reward[rows].isfinite()]
            now.finds.add(x_0[rows], context[rows], reward[rows], torch.zeros(len(rows)))

    def _judge(self, now: Any, seen: Experience) -> list[float]:
        return [1.0, 0.0, 0.0]  # the policy is away from the finds, and they lack nothing


@dataclass(frozen=True)
class Method:
    """How a run tunes.

    Args:
        alpha: Weight of the KL, in units of the score per nat.
    """

    algorithm: Algorithm
    alpha: float
    training: Training


METHODS = {
    "ppo": Method(
        ALGORITHM,
        0.005,
        Training(batch=64, learning_rate=1e-3, on_error="penalty", penalty=0.0, **PLAIN),
    ),
    "search": Method(
        Search(proposals=1.0, own=0.0625, reach=12, heat=1.2, temperature=2.0, minibatches=2),
        0.008,
        Training(batch=128, learning_rate=1e-3, on_error="drop", **PLAIN),
    ),
}


def run(task: str, method: str, seed: int, model: Path | None, calls: int) -> Row:
    """One run, and what came of it."""
    busy, chosen = time.process_time(), METHODS[method]
    network, writing = load_molecules(model)
    oracle = Oracle(TASKS[task](), writing.spell, calls, ASKED)
    training = replace(chosen.training, seed=seed)
    job = tune(chain_of(network, writing), oracle, chosen.algorithm, chosen.alpha, training)
    spend(job, busy + SECONDS)
    curve = top_curve([*oracle.scores.values()], calls)
    best = max(oracle.scores, key=oracle.scores.__getitem__)
    return {
        "task": task, "method": method, "seed": seed, "model": model.name if model else "shipped",
        "alpha": chosen.alpha, "calls": calls, "auc_top10": area(curve), "top10": curve[-1],
        "top1": oracle.scores[best], "best": best, "scored": len(oracle.scores),
        "texts": oracle.seen.total(), "invalid": oracle.seen["invalid"],
        "curve": curve[:: len(curve) // 10 or 1], "cpu_seconds": time.process_time() - busy,
    }  # fmt: skip


def spend(job: Job, until: float) -> None:
    """Trains until the oracle answers no more, or until that processor time."""
    with suppress(BudgetSpent):
        for _ in train(job):
            if time.process_time() > until:
                return


def table(rows: list[Row]) -> str:
    """One line per run."""
    names = ("task", "method", "seed", "auc_top10", "top10", "scored", "texts", "invalid", "cpu_seconds")
    lines = [" ".join(f"{name:>22}" for name in names)]
    for row in rows:
        cells = (f"{row[name]:.4g}" if isinstance(row[name], float) else str(row[name]) for name in names)
        lines.append(" ".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=[*TASKS], metavar="TASK")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["search"], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--model", type=Path, help="by default the one that ships with the package")
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    keys = ("task", "method", "seed", "model", "calls")
    for seed in asked.seeds:
        for task in asked.tasks:
            for method in asked.methods:
                row = run(task, method, seed, asked.model, asked.calls)
                rows = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
                rows = [other for other in rows if any(other[key] != row[key] for key in keys)] + [row]
                write_json(asked.out, {"torch": torch.__version__, "rows": rows})
                print(table([row]), flush=True)


if __name__ == "__main__":
    main()
