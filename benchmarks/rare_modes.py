"""Modes that the model rarely draws: local search beside PPO, on landscapes in which every score is known.

    python benchmarks/rare_modes.py [--only PROBLEM ...] [--methods NAME ...] [--seeds N] [--out FILE.json]

gb1-lower-0.05   what is asked for lies 9.6 nats from the model: PPO never draws most of it
the others       p_r is broad, or nearer: local search must know when to leave the floor to PPO

`local-search` has its default settings, `coverage` the other finish; `replay` imitates what it has found for
half of the time, whatever it sees, and is what PPO is compared with. `student` is taught by maximum
likelihood on exact samples of p_r. All train for 30 processor seconds of one thread; every number is exact.
`calls` counts every sequence that was scored, `distinct` each once, and `found` is the share of p_r on them.
The settings of local search were chosen on two seeds of gb1-lower-0.05. Rows of other runs in FILE.json stay.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import landscape
import torch

from difftilt.algorithms.local_search import LocalSearch

OUT = Path(__file__).parent / "results" / "rare_modes.json"
SECONDS = 30.0
PROBLEMS = ("gb1-lower-0.05", "gb1-whole-0.05", "six6-lower-0.1", "pax6-lower-0.1", "egr2-lower-0.1")
METHODS = ("ppo", "replay", "local-search", "coverage", "student")


class Replay(LocalSearch):
    """Imitates for half of the time."""

    def __post_init__(self):
        super().__post_init__()
        self.start = time.process_time()

    def _decide(self) -> None:
        self.imitates = time.process_time() - self.start < SECONDS / 2
        self.searches = self.imitates


landscape.METHODS.update(
    {
        "coverage": lambda: LocalSearch(finish="coverage"),
        "replay": Replay,
    }
)


def run(problem: landscape.Problem, method: str, seed: int) -> dict[str, Any]:
    """One training, and which sequences it asked for."""
    asked = torch.zeros(len(problem.table.score), dtype=torch.bool)

    def reward(x: torch.Tensor, cond: Any) -> torch.Tensor:
        asked[problem.table.index(x)] = True
        return problem.table.lookup(x, cond)

    row = landscape.run(problem, method, seed, SECONDS, reward)
    found = {"distinct": int(asked.sum()), "found": problem.solved.law[asked].sum().item()}
    return {"problem": problem.name, **row, **(found if method != "student" else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", default=PROBLEMS)
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", type=Path, default=Path("runs/landscape"))
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    for name in asked.only:
        problem = landscape.make_problem(name, asked.models)
        for seed in range(asked.seeds):
            for method in asked.methods:
                row = run(problem, method, seed)
                print(name, method, seed, {k: round(v, 4) for k, v in row["curve"][-1].items()}, flush=True)
                key = (name, method, seed)
                known = [r for r in known if (r["problem"], r["method"], r["seed"]) != key] + [row]
                known.sort(
                    key=lambda r: (PROBLEMS.index(r["problem"]), METHODS.index(r["method"]), r["seed"])
                )
                content = {"torch": torch.__version__, "batch": landscape.BATCH, "seconds": SECONDS}
                asked.out.write_text(json.dumps(content | {"rows": known}, indent=1) + "\n")


if __name__ == "__main__":
    main()
