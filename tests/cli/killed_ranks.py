"""Kills or stops processes of runs under torchrun, lets the runs go on, and compares what they leave.

python tests/cli/killed_ranks.py KILLS [SEED]

Launchers are those of torchrun; their processes are forks of this one, which has loaded everything.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import types
import uuid
from collections import Counter
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import commands  # noqa: F401  (loads what commands load)
import torch
from killed import differences, fingerprint
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from difftilt.cli import main
from difftilt.training import distributed

SMALL = ["--steps", "2", "--batch", "16", "--evaluate", "8", "--rounds", "6"]
WORDS = ["finetune", "digits", *SMALL, "--reward", "ink", "--ema-decay", "0.5"]
PROCESSES, DEADLINE = 2, 15.0


class _DoneError(Exception):
    """A process has come to its end."""


def life(words: list[str]) -> None:
    """What every process of a job does."""
    torch.set_num_threads(1)
    sys.argv = ["difftilt", *words]

    def leave(code: int) -> None:
        raise _DoneError

    # a launcher of functions waits for them to return
    distributed.os = types.SimpleNamespace(environ=os.environ, _exit=leave)
    with contextlib.suppress(_DoneError):
        main.main()


class Launched:
    """A job of two processes under torchrun, as a child of this process."""

    def __init__(self, words: list[str], restarts: int, log: Path):
        sys.stdout.flush()
        self._log = log
        self.launcher = os.fork()
        if not self.launcher:
            self._launch(words, restarts)
        self.code: int | None = None

    def _launch(self, words: list[str], restarts: int) -> None:
        code = 1
        try:
            handle = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            config = LaunchConfig(
                1, 1, PROCESSES, run_id=uuid.uuid4().hex, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
                max_restarts=restarts, monitor_interval=0.1, start_method="fork",
            )  # fmt: skip
            elastic_launch(config, life)(words)
            code = 0
        except BaseException as error:
            print(type(error).__name__, str(error)[:300], file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def ranks(self) -> list[int]:
        """The processes of the job that live."""
        try:
            text = Path(f"/proc/{self.launcher}/task/{self.launcher}/children").read_text()
        except FileNotFoundError:
            return []
        return [int(word) for word in text.split()]

    def ended(self) -> bool:
        if self.code is None:
            child, status = os.waitpid(self.launcher, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if child else None
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


def one(kind: str, folder: Path, after: float, dice: random.Random) -> tuple[Counter[str], float]:
    """Hits a run once and lets it go on; what came of it by name, and how long the job took to end."""
    seen, log = Counter[str](), folder.with_suffix(".log")
    job = Launched([*WORDS, "--out", str(folder)], 2 if kind.endswith("restart") else 0, log)
    start = time.monotonic()
    while not job.ended() and time.monotonic() - start < after:
        time.sleep(0.005)
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
    start, whole = time.monotonic(), home / "whole"
    job = Launched([*WORDS, "--out", str(whole)], 0, home / "whole.log")
    job.wait()
    took, expected = time.monotonic() - start, fingerprint(whole)
    dice, seen, times = random.Random(seed), Counter[str](), list[float]()
    for number in range(kills):
        folder = home / f"run{number}"
        found, seconds = one(kind, folder, dice.uniform(0.3, 1) * took, dice)
        seen += found
        times.append(seconds)
        for name in differences(folder, expected):
            seen[f"differs: {name}"] += 1
        shutil.rmtree(folder)
    shutil.rmtree(whole)
    ended = {} if kind.endswith("restart") else {"longest end, seconds": round(max(times), 1)}
    return {"kind": kind, **seen, **ended, "unbroken, seconds": round(took, 1)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as scratch:
            result = campaign(kind, int(sys.argv[1]), int([*sys.argv, "0"][2]), Path(scratch))
            print(json.dumps(result, indent=1), flush=True)
