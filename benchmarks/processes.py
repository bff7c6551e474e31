"""How much faster two processes of torchrun go through a digits run than one, at an equal total batch.

python benchmarks/processes.py [--processes N] [--repeats N] [--out FILE.json]

A round's time is the difference between a long run and a short one, divided by the rounds between them, so
that starting, judging and writing do not count; alone and in processes in turn, one thread each.
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

import torch

SHORT, LONG = 2, 12
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch", type=int, default=256, help="of all processes together")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load, rounds = os.getloadavg()[0], {1: [], options.processes: []}
    for _ in range(options.repeats):
        for processes, seconds in rounds.items():
            short, long = (timed(processes, options.batch, count) for count in (SHORT, LONG))
            seconds.append((long - short) / (LONG - SHORT))
    medians = {processes: statistics.median(seconds) for processes, seconds in rounds.items()}
    result = {
        "load_before": round(load, 2), "batch": options.batch, "rounds": [SHORT, LONG],
        "seconds_a_round": rounds, "speedup": medians[1] / medians[options.processes],
        "cores": os.cpu_count(), "torch": torch.__version__, "python": platform.python_version(),
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")


def timed(processes: int, batch: int, rounds: int) -> float:
    """Seconds of a whole command."""
    launcher = [] if processes == 1 else [*TORCHRUN, str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["--rounds", str(rounds), "--batch", str(batch), "--evaluate", "8"]
        words = ["finetune", "digits", "--reward", "ink", *sizes, "--out", f"{folder}/run"]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *launcher, "-m", "difftilt.cli", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
        )
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
