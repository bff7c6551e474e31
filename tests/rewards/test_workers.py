"""What hangs, crashes or exits costs one sample, never the run; and nothing is left behind."""

import copy
import ctypes
import faulthandler
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from difftilt.answers import Failure, RewardError
from difftilt.conditions import unconditional
from difftilt.exact.toy import gmm_schedule
from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.rewards.command import CommandReward
from difftilt.rewards.ledger import Streaming
from difftilt.rewards.process_tree import kill_group, lives
from difftilt.rewards.worker_pool import Pool, PoolLost
from difftilt.rewards.workers import Workers
from difftilt.shapes import Cond, Sample

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


def hang() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        time.sleep(100)


def crash() -> None:
    faulthandler.disable()  # pytest's, which would tell of it at length
    ctypes.string_at(0)


FAULTS: dict[str, Any] = {
    "raised KeyError ('no such pocket')": lambda x: {}["no such pocket"],
    "raised KeyboardInterrupt ()": lambda x: (_ for _ in ()).throw(KeyboardInterrupt),
    "took longer than 2 s": lambda x: hang(),
    "raised SystemExit (3)": lambda x: sys.exit(3),
    "ended its process with code 7": lambda x: os._exit(7),
    "ended its process with code 0": lambda x: os._exit(0),
    "ended its process with code 139 (SIGSEGV)": lambda x: crash(),
    "ended its process with code 137 (SIGKILL)": lambda x: os.kill(os.getpid(), signal.SIGKILL),
    "returned None instead of one number": lambda x: None,
    "returned nan": lambda x: [math.nan],
    "returned inf": lambda x: x[:, 0] / 0,
    "returned shape (3,) instead of (1,)": lambda x: torch.ones(3),
    "raised MemoryError ()": lambda x: [float(len(bytearray(10**9)))],
    "returned None": lambda x: [None],
    "is out of stock": lambda x: [Failure("is out of stock")],
}


def square(x: Sample, c: Cond) -> Any:
    if x[0, 0] % 97 == 0:
        print("what rewards print is no answer")
    return x[:, 0].square()


def faulty(x: Sample, c: Cond) -> Any:
    """The square of the first number; the fault of the second one, if it names one."""
    fault = int(x[0, 1])
    return square(x, c) if fault < 0 else list(FAULTS.values())[fault](x)


def with_faults(count: int, share: float) -> Sample:
    """Numbers, each with a fault or -1: in so large a share, all faults in turn."""
    numbers, faults = torch.arange(1.0, count + 1), torch.full((count,), -1.0)
    bad = torch.randperm(count, generator=torch.Generator().manual_seed(1))[: round(share * count)]
    faults[bad] = torch.arange(len(bad), dtype=torch.float) % len(FAULTS)
    return torch.stack([numbers, faults], 1)


def ask(workers: Workers, *numbers: float) -> list[float | Failure]:
    x = torch.tensor(numbers)[:, None]
    return workers(x, unconditional(len(x)))


def children(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_every_sample_is_accounted_for_and_every_fault_named(capfd):
    x = with_faults(400, 0.3)
    told: dict[int, float] = {}
    start = time.monotonic()
    with Workers(faulty, 4, timeout=2.0, memory=256, on_result=told.__setitem__) as workers:
        answers = workers(x, unconditional(len(x)))
    seconds = time.monotonic() - start
    expected = [
        (number * number if fault < 0 else Failure(list(FAULTS)[int(fault)])) for number, fault in x.tolist()
    ]
    assert answers == expected
    assert told == {row: number for row, number in enumerate(answers) if not isinstance(number, Failure)}
    named = Counter(answer.reason for answer in answers if isinstance(answer, Failure))
    assert set(named) == set(FAULTS) and min(named.values()) >= 8
    assert seconds < 30  # for 8 that hang, and 40 others after which a worker is made anew
    good = sum(fault < 0 and number % 97 == 0 for number, fault in x.tolist())
    assert capfd.readouterr().out == "what rewards print is no answer\n" * good and good >= 2


def test_a_hung_worker_stops_nothing():
    told: dict[float, float] = {}
    start = time.monotonic()

    def result(row: int, number: float) -> None:
        told[number] = time.monotonic() - start

    def reward(x: Sample, c: Cond) -> Any:
        return hang() if x[0, 0] == 0 else square(x, c)

    with Workers(reward, 2, timeout=3.0, on_result=result) as workers:
        assert isinstance(workers, Streaming)  # a ledger writes down what it is told
        answers = ask(workers, *map(float, range(60)))
    assert answers == [Failure("took longer than 3 s")] + [float(k * k) for k in range(1, 60)]
    assert max(told.values()) < 2.5 <= time.monotonic() - start


def test_a_fast_reward_is_given_several_samples_and_none_is_paid_twice(tmp_path):
    paid = tmp_path / "paid"

    def reward(x: Sample, c: Cond) -> Any:
        with paid.open("a") as file:
            file.write(f"{x[0, 0]:g}\n")
        return os._exit(5) if x[0, 0] % 50 == 49 else square(x, c)

    with Workers(reward, 2, timeout=30.0) as workers:
        ask(workers, *map(float, range(40)))
        before = workers.tasks
        answers = ask(workers, *map(float, range(40, 240)))
        assert workers.tasks - before < 120
    died = [row for row, answer in enumerate(answers) if isinstance(answer, Failure)]
    assert died == [9, 59, 109, 159]
    assert sorted(map(int, paid.read_text().split())) == list(range(240))


def noisy(x: Sample, c: Cond) -> Any:
    if x[0, 0] < 0:
        os._exit(1)
    return [random.random() + np.random.rand() + torch.rand(()).item()]


def test_what_a_reward_draws_depends_on_its_seed_and_the_number_of_the_sample_alone():
    rows = []
    for count, dies in ((1, 30), (2, 3), (4, 17)):
        numbers = [float(k) if k != dies else -1.0 for k in range(40)]
        with Workers(noisy, count, timeout=30.0, seed=3) as workers:
            rows.append([*ask(workers, *numbers[:15]), *ask(workers, *numbers[15:])])
        assert rows[-1][dies] == Failure("ended its process with code 1")
    ours = [[row[k] for k in range(40) if k not in (30, 3, 17)] for row in rows]
    assert ours[0] == ours[1] == ours[2] and len(set(ours[0])) == 37
    with Workers(noisy, 2, timeout=30.0, seed=3) as again, Workers(noisy, 2, timeout=30.0, seed=4) as other:
        again.load_state_dict({"asked": 15})
        assert ask(again, *[1.0] * 25)[:2] == rows[0][15:17]
        assert again.state_dict() == {"asked": 40}
        assert ask(other, 1.0) != rows[0][:1]


def test_what_may_be_transient_is_tried_again(tmp_path):
    def reward(x: Sample, c: Cond) -> Any:
        kind, tries = int(x[0, 0]), tmp_path / f"{x[0, 0]:g}"
        with tries.open("a") as file:
            file.write(".")
        faults = [lambda: {}["a"], lambda: os._exit(4), hang, lambda: [math.nan], lambda: torch.ones(2)]
        good_after = 3 if kind >= 10 else 2
        return x[:, 0] if len(tries.read_text()) > good_after - 1 and kind != 3 else faults[kind % 10]()

    with Workers(reward, 2, timeout=1.0, retries=1) as workers:
        answers = ask(workers, 0, 1, 2, 3, 4, 10, 11, 12)
    assert answers == [
        *(0, 1, 2),
        Failure("returned nan"),
        Failure("returned shape (2,) instead of (1,)"),
        Failure("raised KeyError ('a') at the last of 2 attempts"),
        Failure("ended its process with code 4 at the last of 2 attempts"),
        Failure("took longer than 1 s at the last of 2 attempts"),
    ]
    tries = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert tries == {"0": 2, "1": 2, "2": 2, "3": 1, "4": 1, "10": 2, "11": 2, "12": 2}


def test_the_guard_says_which_sample_failed_and_why():
    x = torch.tensor([[1.0, -1.0], [2.0, 4.0], [3.0, -1.0]])
    with Workers(faulty, 2, timeout=30.0) as workers:
        guard = Guard(workers, on_error="drop")
        assert guard(x, unconditional(3)).nan_to_num().tolist() == [1, 0, 9]
        assert guard.failure == "ended its process with code 7 for sample 1 of 3"
        assert guard.name == "faulty" and guard.state_dict()["reward"] == {"asked": 3}
        with pytest.raises(RewardError, match=r"'faulty' ended its process with code 7 for sample 1 of 3"):
            Guard(workers)(x, unconditional(3))
        reference = GaussianPolicy(torch.nn.Identity(), gmm_schedule(3), (2,), noise=FixedLarge())
        objective = Objective(Guard(workers), reference, 1.0)
        with pytest.raises(
            RewardError, match=r"has no gradient to pass back.*use an algorithm that needs none"
        ):
            objective.score(torch.ones(2, 2).neg().requires_grad_(), unconditional(2))


def test_samples_and_conditions_arrive_as_they_are():
    def reward(x: Sample, c: Cond) -> Any:
        right = (
            x.dtype is torch.bfloat16 and c["info"][0]["at"].equal(torch.arange(3)) and not x.requires_grad
        )
        return x[:, 0, 0] + len(c["prompt"][0]) + c["n"] if right else None

    x = torch.tensor([[[1.0]], [[2.0]]], dtype=torch.bfloat16)
    info: list[Any] = [{"at": torch.arange(3)}] * 2
    with Workers(reward, 1, timeout=30.0) as workers:
        cond: Cond = {"prompt": ["a", "bcd"], "n": torch.tensor([0.5, 0.25]), "info": info}
        assert workers(x.requires_grad_(), cond) == [2.5, 5.25]
        assert workers(x[:0], {"prompt": []}) == []
        with pytest.raises(RewardError, match="conditions must be data that can be sent to workers, but got"):
            workers(x, {"prompt": [lambda: 1, "b"]})
        assert workers(x, cond) == [2.5, 5.25]


class Late:
    """What can be packed, but not unpacked in a process that was made before it was known."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return _unknown_here, (os.getpid(),)


def _unknown_here(process: int) -> int:
    if process != os.getpid():
        raise LookupError("unknown here")
    return process


def test_conditions_that_workers_cannot_read_are_named():
    with Workers(square, 1, timeout=30.0) as workers, pytest.raises(RewardError, match="unknown here"):
        workers(torch.ones(1, 1), {"late": [Late()]})


class Learns:
    def __call__(self, x: Sample, c: Cond) -> Sample:
        return x

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None: ...


class Fixed(torch.nn.Linear):
    def forward(self, x: Sample, c: Cond) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x)[:, 0]


def test_what_cannot_work_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"'Learns' learns, but got 2 workers.*score it without workers"):
        Workers(Learns(), 2, 1.0)
    with pytest.raises(ValueError, match="'Fixed' learns"):
        Workers(Fixed(1, 1), 2, 1.0)
    for name, bad in {"count": 0, "timeout": 0.0, "retries": -1, "memory": 0, "seed": -1}.items():
        with pytest.raises(ValueError, match=f"^{name} must be"):
            Workers(square, **{"count": 1, "timeout": 1.0} | {name: bad})
    with Workers(Fixed(1, 1).requires_grad_(False), 2, 30.0) as workers:
        assert all(isinstance(answer, float) for answer in ask(workers, 1.0, 2.0))


def test_a_reward_on_a_gpu_is_told_what_to_do():
    def reward(x: Sample, c: Cond) -> Any:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess. To use CUDA with ...")

    with Workers(reward, 1, timeout=30.0) as workers:
        (answer,) = ask(workers, 1.0)
    assert isinstance(answer, Failure) and answer.reason.startswith("uses a GPU, which workers cannot; keep")


def test_an_interrupted_batch_leaves_nothing_to_the_next_one():
    def interrupt(row: int, number: float) -> None:
        raise KeyboardInterrupt

    with Workers(square, 2, timeout=30.0, on_result=interrupt) as workers:
        with pytest.raises(KeyboardInterrupt):
            ask(workers, *map(float, range(50)))
        workers.on_result = None
        assert ask(workers, 3.0, 4.0) == [9.0, 16.0]


def test_copies_and_forks_have_processes_of_their_own():
    with Workers(square, 2, timeout=30.0) as workers:
        assert ask(workers, 2.0) == [4.0]
        twin = copy.deepcopy(workers)
        assert ask(twin, 3.0) == [9.0] and twin.asked == 2
        fork = os.fork()
        if fork == 0:
            os._exit(0 if ask(workers, 5.0) == [25.0] else 1)
        assert os.waitpid(fork, 0)[1] == 0
        twin.close()
        assert ask(workers, 4.0) == [16.0]


@LINUX
def test_workers_whose_keeper_is_killed_are_replaced(tmp_path):
    def reward(x: Sample, c: Cond) -> Any:
        flag = tmp_path / "killed"
        if x[0, 0] == -1 or (x[0, 0] == 7 and not flag.exists()):
            flag.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            hang()
        return square(x, c)

    with Workers(reward, 2, timeout=30.0) as workers:
        assert ask(workers, *map(float, range(20))) == [float(k * k) for k in range(20)]
        assert (tmp_path / "killed").exists()
        answers = ask(workers, 1.0, 2.0, -1.0, 3.0)
        assert answers[2] == Failure("ended the processes beside its own")
        assert [answers[k] for k in (0, 1, 3)] == [1, 4, 9]


def test_workers_that_cannot_be_kept_alive_are_given_up(monkeypatch):
    def lost(*_: Any) -> None:
        raise PoolLost("took no more samples")

    monkeypatch.setattr(Pool, "send", lost)
    with pytest.raises(RewardError, match="what watches them took no more samples 3 times before"):
        ask(Workers(square, 1, timeout=30.0), 1.0)


@LINUX
def test_fifty_batches_with_crashes_leak_neither_processes_nor_files():
    def reward(x: Sample, c: Cond) -> Any:
        return os._exit(3) if x[0, 0] == 0 else square(x, c)

    mine = set(children(os.getpid()))
    with Workers(reward, 2, timeout=30.0) as workers:
        ask(workers, 0.0, 1.0)
        (keeper,) = set(children(os.getpid())) - mine

        def files() -> list[int]:
            return [len(list(Path(f"/proc/{process}/fd").iterdir())) for process in (os.getpid(), keeper)]

        ask(workers, 0.0, *[1.0] * 7)
        before = files()
        for _ in range(50):
            ask(workers, 0.0, *[1.0] * 7)
            assert set(children(os.getpid())) == mine | {keeper}
        ask(workers, 1.0)
        assert len(children(keeper)) <= 3  # two, and perhaps one that has just died, with files of its own
        assert until(lambda: all(now <= then for now, then in zip(files(), before, strict=True)))
    assert set(children(os.getpid())) == mine
    dropped = Workers(reward, 2, timeout=30.0)
    ask(dropped, 1.0)
    del dropped
    assert set(children(os.getpid())) == mine


SCRIPT = """
import sys, time, torch
from difftilt.conditions import unconditional
from difftilt.rewards.command import CommandReward
from difftilt.rewards.workers import Workers

def spin(x, c):
    if x[0, 0] == 0:
        return x[:, 0]
    while True:
        pass

run = CommandReward(sys.argv[1], lambda x: ["a"] * len(x), 1000.0)
def reward(x, c):
    return run(x, c) if x[0, 0] == 1 else spin(x, c)
ready = lambda row, number: print("ready", flush=True)
with Workers(reward, 2, 1000.0, on_result=ready) as workers:
    workers(torch.tensor([[0.0], [1.0], [2.0]]), unconditional(3))
"""


def mentioned(text: str) -> list[int]:
    """Processes whose command line holds a text."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text in entry.read_text():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def until(condition: Any, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture
def slow(tmp_path) -> Path:
    """A command that waits, and starts another one that does."""
    inner, outer = tmp_path / "inner.sh", tmp_path / "outer.sh"
    inner.write_text("#!/bin/sh\nwhile true; do sleep 0.2; done\n")
    outer.write_text(f"#!/bin/sh\n{inner} &\n{inner}\n")
    for path in (inner, outer):
        path.chmod(0o755)
    return outer


@LINUX
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_dies_leaves_no_orphans(slow, tmp_path, number):
    main = tmp_path / "main.py"
    main.write_text(SCRIPT)
    words, none = [sys.executable, main, slow], subprocess.DEVNULL
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=none) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert until(lambda: len(mentioned(str(tmp_path))) >= 4 + 3)  # four of ours, three of the command
        process.send_signal(number)
        process.wait(10)
    assert until(lambda: not mentioned(str(tmp_path)))


@LINUX
@pytest.mark.parametrize("count", [0, 1])
def test_a_command_is_killed_with_all_that_it_has_started(slow, tmp_path, count):
    command = CommandReward(str(slow), lambda x: ["a"] * len(x), 1000.0 if count else 1.0)
    if count:
        with Workers(command, count, timeout=1.0) as workers:
            assert ask(workers, 1.0) == [Failure("took longer than 1 s")]
            assert until(lambda: not mentioned(str(tmp_path)))
    else:
        with pytest.raises(ValueError, match="took longer than 1 seconds for 1 samples"):
            command(torch.ones(1, 1), unconditional(1))
        assert until(lambda: not mentioned(str(tmp_path)))


def test_processes_that_are_gone_may_be_killed_again():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not lives(process.pid) and lives(os.getpid())
    kill_group(process.pid)
