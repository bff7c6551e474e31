"""A signal to a command, wherever it comes: one sentence, 128 + its number, and the run can be resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import Command, Ended
from killed import fingerprint

from difftilt.cli import door
from difftilt.cli import finetune as tuning
from difftilt.domains.digits import pretrain
from difftilt.evaluation import comparison
from difftilt.evaluation import report as pages
from difftilt.experiment import finetune, fit_value, sample
from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.samplers.smc import SMC
from difftilt.training import checkpoint
from difftilt.training import pretrain as loops
from difftilt.training.adam import Adam
from difftilt.training.signals import SAME

# a process of several that run tests has its own way with signals; make test runs this file by itself, too
pytestmark = pytest.mark.skipif("PYTEST_XDIST_WORKER" in os.environ, reason="needs a process of its own")
MOMENTS = int(os.environ.get("DIFFTILT_MOMENTS", "8"))
SMALL = ["--reward", "ink", "--rounds", "2", "--batch", "8", "--evaluate", "8", "--steps", "1"]
TUNE = [
    "finetune",
    "digits",
    *SMALL,
    "algorithm:ppo",
    "--algorithm.epochs",
    "1",
    "--algorithm.minibatches",
    "2",
]
STEER = ["sample", "digits", "--reward", "ink", "--steps", "2", "--count", "4", "sampler:smc"]
LEARN = ["value", "fit", "digits", *SMALL]
TEACH = ["pretrain", "digits", "--steps", "3", "--classifier-steps", "3"]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

# phase: (command, what is called then, which of its calls)
Place = tuple[list[str], Any, str, int]
RUNS: dict[str, Place] = {
    "first steps": (TUNE, door, "_open_streams", 1),
    "start-up": (TUNE, tuning, "plan", 1),
    "first evaluation": (TUNE, sample, "evaluate", 1),
    "a reward of the first evaluation": (TUNE, Guard, "_call", 2),
    "sampling": (TUNE, Objective, "sample", 4),
    "a reward in training": (TUNE, Guard, "_call", 4),
    "update": (TUNE, Adam, "step", 3),
    "save": (TUNE, checkpoint, "save", 1),
    "last save": (TUNE, checkpoint, "save", 2),
    "last evaluation": (TUNE, sample, "evaluate", 2),
    "report": (TUNE, finetune, "write_report", 1),
    "value, learning": (LEARN, Objective, "sample", 2),
    "value, check": (LEARN, fit_value, "check", 1),
}
OTHERS: dict[str, Place] = {
    "sample": ([*STEER[:-1]], sample, "evaluate", 1),
    "steered sample": (STEER, SMC, "_draw", 1),
    "pretraining": (TEACH, loops, "_step", 4),
    "model card": (TEACH, pretrain, "quality", 1),
    "report": (["report"], pages, "write_report", 1),
    "comparison": (["compare"], comparison, "compare", 1),
}


def hit(owner: Any, name: str, call: int, numbers: Sequence[int], pause: float = 0.0) -> Callable[[], None]:
    """What makes a command signal itself when it calls something for the n-th time."""

    def prepare() -> None:
        original, calls = getattr(owner, name), [0]

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == call:
                for number in numbers:
                    os.kill(os.getpid(), number)
                    time.sleep(pause)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    return prepare


def check(ended: Ended, number: int) -> None:
    assert ended.code == 128 + number, ended
    assert len(ended.said) == 1 and signal.Signals(number).name in ended.said[0], ended.err
    assert "Traceback" not in ended.err and "Exception ignored" not in ended.err, ended.err


def resumed(folder: Path, tmp_path: Path) -> dict[str, Any]:
    ended = Command(["resume", str(folder)], tmp_path).wait()
    assert ended.code == 0, ended.err
    return fingerprint(folder)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What runs leave behind that nothing interrupts."""
    found = {}
    for words in (TUNE, LEARN):
        folder = tmp_path_factory.mktemp("unbroken")
        assert Command([*words, "--out", str(folder / "run")], folder).wait().code == 0
        found[words[0]] = fingerprint(folder / "run")
    return found


@pytest.mark.parametrize("phase", RUNS)
def test_a_run_is_ended_in_a_phase_and_goes_on(phase, unbroken, tmp_path):
    words, owner, name, call = RUNS[phase]
    number, folder = SIGNALS[list(RUNS).index(phase) % 3], tmp_path / "run"
    ended = Command([*words, "--out", str(folder)], tmp_path, hit(owner, name, call, [number])).wait()
    check(ended, number)
    if phase in ("first steps", "start-up"):
        assert not folder.exists()
        return
    assert f"difftilt resume {folder}" in ended.said[0]
    assert resumed(folder, tmp_path) == unbroken[words[0]]


@pytest.mark.parametrize("phase", OTHERS)
def test_other_commands_are_ended_in_a_phase(phase, tmp_path):
    words, owner, name, call = OTHERS[phase]
    if words[0] in ("report", "compare"):
        assert Command([*TUNE, "--out", str(tmp_path / "run")], tmp_path).wait().code == 0
        words = [*words, str(tmp_path / "run")]
    else:
        words = [*words[:2], "--out", str(tmp_path / "out"), *words[2:]]
    check(Command(words, tmp_path, hit(owner, name, call, [signal.SIGTERM])).wait(), signal.SIGTERM)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("phase", ["sampling", "a reward in training", "update", "save"])
def test_the_second_signal_does_not_wait_for_the_round(phase, unbroken, tmp_path):
    words, owner, name, call = RUNS[phase]
    folder, twice = tmp_path / "run", [signal.SIGTERM, signal.SIGINT]
    before = hit(owner, name, call, twice, SAME + 0.05)
    ended = Command([*words, "--out", str(folder)], tmp_path, before).wait()
    check(ended, signal.SIGINT)
    done = sorted(path.name for path in (folder / "checkpoints").glob("round-*"))
    assert done == ([] if phase == "save" else ["round-000001"])
    assert resumed(folder, tmp_path) == unbroken["finetune"]


STUBBORN = """
import time
def score(sample, cond):
    while True:
        try:
            time.sleep(30)
        except BaseException:
            pass
"""


@pytest.mark.parametrize("signals", [1, 2])
def test_a_reward_that_holds_on_to_everything_is_left_all_the_same(signals, tmp_path):
    (tmp_path / "mine.py").write_text(STUBBORN)
    words = [
        "finetune",
        "digits",
        "--reward",
        f"{tmp_path / 'mine.py'}:score",
        "--out",
        str(tmp_path / "run"),
    ]
    command, started = Command(words, tmp_path), time.monotonic()
    while not (tmp_path / "run" / "run.json").exists() and time.monotonic() - started < 60:
        time.sleep(0.05)
    time.sleep(1)
    for _ in range(signals):
        command.send(signal.SIGTERM)
        time.sleep(SAME + 0.1)
    check(command.wait(30), signal.SIGTERM)


def test_what_breaks_after_ctrl_c_is_its_doing(unbroken, tmp_path):
    """The programs that a reward runs are stopped by the same key."""
    original, folder, calls = Guard._call, tmp_path / "run", [0]

    def before() -> None:
        def broken(guard: Guard, asked: Any) -> Any:
            calls[0] += 1
            if calls[0] == 4:
                os.kill(os.getpid(), signal.SIGINT)
                raise ValueError("ended with code -2")
            return original(guard, asked)

        Guard._call = broken  # pyright: ignore[reportAttributeAccessIssue]

    check(Command([*TUNE, "--out", str(folder)], tmp_path, before).wait(), signal.SIGINT)
    assert resumed(folder, tmp_path) == unbroken["finetune"]


# phase of a run: the file that begins it
BEGINS = {
    "first evaluation": "run.json",
    "training": "before.json",
    "last evaluation": "checkpoints/round-000002/MANIFEST.json",
}


def phase_of(folder: Path) -> str:
    """In which phase a run was left."""
    if (folder / "summary.json").exists():
        return "end"
    begun = [phase for phase, name in BEGINS.items() if (folder / name).exists()]
    return begun[-1] if begun else "start-up"


@pytest.mark.slow
def test_random_moments_of_a_run(unbroken, tmp_path):
    rng, landed = random.Random(0), Counter[str]()
    for moment in range(MOMENTS):
        number, twice, folder = rng.choice(SIGNALS), rng.random() < 0.3, tmp_path / f"run{moment}"
        phase = rng.choice([None, *BEGINS])
        command = Command([*TUNE, "--out", str(folder)], tmp_path)
        while phase and not (folder / BEGINS[phase]).exists():
            time.sleep(0.002)
        time.sleep(rng.random() * {"training": 0.5}.get(str(phase), 0.1))
        if os.waitpid(command.process, os.WNOHANG)[0]:
            landed["too late"] += 1
            continue
        command.send(number)
        if twice:
            time.sleep(rng.choice([0.0, 0.05, SAME + 0.02]))
            if phase_of(folder) != "end":
                command.send(number)
        ended = command.wait()
        if ended.code == 0:  # it came when all was said
            landed["too late"] += 1
            continue
        if ended == Ended(-number, "", "") and not folder.exists():  # before it watched for signals
            landed["too early"] += 1
            continue
        check(ended, number)
        landed[phase_of(folder)] += 1
        if (folder / "run.json").exists():
            assert resumed(folder, tmp_path) == unbroken["finetune"]
    print(f"{MOMENTS} moments: {dict(landed)}")
    assert {*BEGINS} <= {*landed} and landed["too late"] + landed["too early"] <= MOMENTS / 5, landed


@pytest.mark.parametrize("after", [0.25, 1.0])
def test_a_signal_while_modules_are_loaded(after):
    words = [sys.executable, "-m", "difftilt.cli", "finetune", "digits", "--help"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    busy = 0.0
    while busy < after:  # in seconds of its processor time, on however busy a machine
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        busy = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert err == "difftilt: got SIGTERM and stopped before the end\n"
