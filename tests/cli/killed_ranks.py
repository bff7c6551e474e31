"""Kills or stops processes of runs under torchrun, lets the runs go on, and compares what they leave.

python tests/cli/killed_ranks.py KILLS [SEED] [KIND ...]
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from killed import differences, fingerprint

ROUNDS, PROCESSES, DEADLINE = 6, 2, 15.0
SMALL = ["--steps", "2", "--batch", "16", "--evaluate", "8", "--rounds", str(ROUNDS)]
WORDS = ["finetune", "digits", *SMALL, "--reward", "ink", "--ema-decay", "0.5"]


class Launched:
    """A job of two processes under torchrun."""

    def __init__(self, words: list[str], restarts: int, log: Path):
        self._log = log
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        sizes = ["--nproc-per-node", str(PROCESSES), "--max-restarts", str(restarts)]
        with log.open("a") as out:
            self._process = subprocess.Popen(
                [*torchrun, *sizes, "-m", "difftilt.cli", *words], stdout=out, stderr=out
            )
        self.launcher = self._process.pid

    @property
    def code(self) -> int | None:
        return self._process.poll()

    def ranks(self) -> list[int]:
        """The processes of the job that live."""
        try:
            text = Path(f"/proc/{self.launcher}/task/{self.launcher}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(word) for word in text.split()]

    def ended(self) -> bool:
        return self.code is not None

    def wait(self, seconds: float = 300) -> float:
        """How long it takes to end, with all its processes."""
        ranks, start = self.ranks(), time.monotonic()
        while not self.ended() or any(Path(f"/proc/{rank}").exists() for rank in ranks):
            if time.monotonic() - start > seconds:
                raise TimeoutError(self._log.read_text()[-3000:])
            time.sleep(0.01)
        return time.monotonic() - start


def hit(kind: str, job: Launched, dice: random.Random) -> str | None:
    """Kills or stops what a kind says; what was hit, or None if nothing was left to hit."""
    ranks = job.ranks()
    if job.ended() or len(ranks) < PROCESSES:
        return None
    target = job.launcher if kind == "SIGTERM to the launcher" else dice.choice(ranks)
    os.kill(target, signal.SIGTERM if kind.startswith("SIGTERM") else signal.SIGKILL)
    return "launcher" if target == job.launcher else f"process {sorted(ranks).index(target)}"


def one(kind: str, folder: Path, dice: random.Random) -> tuple[Counter[str], float]:
    """Hits a run once and lets it go on; what came of it by name, and how long the job took to end."""
    seen, log = Counter[str](), folder.with_suffix(".log")
    job = Launched([*WORDS, "--out", str(folder)], 2 if kind.endswith("restart") else 0, log)
    rounds = dice.randrange(ROUNDS)
    while not job.ended() and not (folder / "checkpoints" / f"round-{rounds:06d}").exists() and rounds:
        time.sleep(0.005)
    time.sleep(dice.uniform(0, 1))
    what = hit(kind, job, dice)
    seen[f"hit {what}" if what else "ended first"] += 1
    seconds = job.wait()
    seen[f"exit code {job.code}"] += 1
    if what and not kind.endswith("restart"):
        seen["ended in time"] += seconds < DEADLINE
        again = ["resume", str(folder)] if (folder / "run.json").exists() else [*WORDS, "--out", str(folder)]
        job = Launched(again, 0, log)
        job.wait()
        seen[f"exit code {job.code} of the one that goes on"] += 1
    return seen, seconds


KINDS = ("SIGKILL, restart", "SIGKILL, by hand", "SIGTERM to the launcher", "SIGTERM to a process")


def campaign(kind: str, kills: int, seed: int, home: Path) -> dict[str, object]:
    """Hits so many runs; what came of them, by name."""
    whole = home / "whole"
    Launched([*WORDS, "--out", str(whole)], 0, home / "whole.log").wait()
    expected, dice, seen, times = fingerprint(whole), random.Random(seed), Counter[str](), list[float]()
    for number in range(kills):
        folder = home / f"run{number}"
        found, seconds = one(kind, folder, dice)
        seen += found
        if not found["ended first"]:
            times.append(seconds)
        for name in differences(folder, expected):
            seen[f"differs: {name}"] += 1
        shutil.rmtree(folder)
    shutil.rmtree(whole)
    ended = {} if kind.endswith("restart") else {"longest end, seconds": round(max(times), 1)}
    return {"kind": kind, **seen, **ended}


if __name__ == "__main__":
    chosen = sys.argv[3:] or KINDS
    for kind in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            result = campaign(kind, int(sys.argv[1]), int([*sys.argv, "0"][2]), Path(scratch))
            print(json.dumps(result, indent=1), flush=True)
