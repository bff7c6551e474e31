"""How much faster a run goes with the threads that it chooses, or in two processes, than with one thread.

python benchmarks/processes.py [--recipes NAME ...] [--repeats N] [--out FILE.json]

A round's time is the difference between a long run and a short one, divided by the rounds between them, so
that starting, judging and writing do not count; one thread, chosen threads and two processes of torchrun, of
one thread each and the same batch in all, in turn.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SHORT, LONG = 2, 12
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
RECIPES = {"digits": ["--reward", "ink"], "dna": [], "molecules": []}
WAYS = {
    "one thread": ([], ["--threads", "1"], {}),
    "chosen threads": ([], [], {}),
    "two processes": (TORCHRUN, ["--threads", "1"], {"OMP_NUM_THREADS": "1"}),
}
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    about = {"rounds": [SHORT, LONG], "cores": os.cpu_count(), "torch": torch.__version__}
    rows: list[Row] = []
    for recipe in options.recipes:
        rows.append({"recipe": recipe, "load_before": round(os.getloadavg()[0], 2)})
        rows[-1] |= compared(recipe, options.repeats)
        print(json.dumps(rows[-1], indent=1), flush=True)
        if options.out:
            content = about | {"python": platform.python_version(), "rows": rows}
            options.out.write_text(json.dumps(content, indent=1) + "\n")


def compared(recipe: str, repeats: int) -> Row:
    """Seconds per round of each way, and how many times faster than one thread it is."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    chosen = list[int]()
    for _ in range(repeats):
        for way in WAYS:
            (short, _), (long, threads) = (timed(recipe, way, count) for count in (SHORT, LONG))
            seconds[way].append((long - short) / (LONG - SHORT))
            chosen += [threads] * (way == "chosen threads")
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    faster = {way: medians["one thread"] / medians[way] for way in WAYS}
    return {"seconds_a_round": seconds, "threads": chosen, "times_faster": faster}


def timed(recipe: str, way: str, rounds: int) -> tuple[float, int]:
    """Seconds of a whole command, and the threads that it took."""
    launcher, words, variables = WAYS[way]
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--rounds", str(rounds), "--evaluate", "8", "--out", f"{folder}/run"]
        command = ["finetune", recipe, *RECIPES[recipe], *sizes, *words]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *launcher, "-m", "difftilt.cli", *command],
            env={k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | variables,
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
        return seconds, json.loads((Path(folder) / "run" / "run.json").read_text())["threads"]


if __name__ == "__main__":
    main()
