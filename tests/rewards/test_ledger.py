"""Paid answers are written down before they are used, and never paid for again, whatever dies."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from difftilt.answers import Failure, RewardError
from difftilt.conditions import unconditional
from difftilt.guard import Guard
from difftilt.rewards.ledger import Ledger, LedgerError, Recorded, owner

NAN = float("nan")


def samples(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers)[:, None]


class Oracle:
    """Squares, and remembers what it was paid for."""

    def __init__(self, bad: float = -1.0):
        self.paid: list[float] = []
        self.bad = bad

    def __call__(self, x: torch.Tensor, c: Any) -> Any:
        self.paid += x[:, 0].tolist()
        return x[:, 0].square().where(x[:, 0] != self.bad, NAN)


def recorded(path: Path, oracle: Any, **settings: Any) -> Recorded:
    return Recorded(oracle, Ledger(path), "dock", "1", **settings)


def test_what_is_known_is_not_paid_again(tmp_path):
    oracle = Oracle()
    for numbers in ((1.0, 2.0, 2.0, 1.0), (2.0, 3.0)):
        x = samples(*numbers)
        assert recorded(tmp_path / "a.db", oracle)(x, unconditional(len(x))) == [n * n for n in numbers]
    assert oracle.paid == [1, 2, 3]
    other = Recorded(oracle, Ledger(tmp_path / "a.db"), "dock", "2")
    assert other(samples(2.0), unconditional(1)) == [4]
    assert recorded(tmp_path / "a.db", oracle)(samples(2.0), {"prompt": ["a"]}) == [4]
    assert oracle.paid == [1, 2, 3, 2, 2]


def test_failures_are_counted_and_asked_for_again(tmp_path):
    oracle = Oracle(bad=2.0)
    for _ in range(2):
        answers = recorded(tmp_path / "a.db", oracle)(samples(1.0, 2.0), unconditional(2))
        assert answers == [1.0, Failure("returned nan")]
    assert oracle.paid == [1, 2, 2]
    (row,) = Ledger(tmp_path / "a.db").stats()
    assert (row["answers"], row["failures"], row["mean"]) == (1, 2, 1.0)


def test_a_reward_that_raises_pays_only_for_what_it_answered(tmp_path):
    class Picky(Oracle):
        def __call__(self, x: torch.Tensor, c: Any) -> Any:
            if 2.0 in x:
                raise OSError("busy")
            return super().__call__(x, c)

    oracle = Picky()
    for _ in range(2):
        guard = Guard(recorded(tmp_path / "a.db", oracle), "dock", on_error="drop")
        assert guard(samples(1.0, 2.0, 3.0), unconditional(3)).isnan().tolist() == [False, True, False]
        assert guard.failure == "raised OSError (busy) for sample 1 of 3"
    assert oracle.paid == [1, 3]


@pytest.mark.parametrize("answer", [[1.0] * 3, torch.ones(2, 1), None, ["a", "b"], torch.ones(2).to_sparse()])
def test_an_answer_that_is_none_is_refused_and_not_written_down(tmp_path, answer):
    reward = recorded(tmp_path / "a.db", lambda x, c: answer)
    with pytest.raises(RewardError, match=r"'dock' raised ValueError .returned .* instead of one number"):
        Guard(reward, "dock")(samples(1.0, 2.0), unconditional(2))
    assert Ledger(tmp_path / "a.db").rows() == []


def test_a_noisy_reward_keeps_replicates_and_a_run_that_goes_on_finds_its_own(tmp_path):
    oracle, x = Oracle(), samples(1.0, 1.0)
    first = recorded(tmp_path / "a.db", oracle, noisy=True)
    first(x, unconditional(2))
    state = first.state_dict()
    first(x, unconditional(2))
    assert oracle.paid == [1, 1, 1, 1]
    again = recorded(tmp_path / "a.db", oracle, noisy=True)
    again.run = first.run
    again.load_state_dict(state)
    again(x, unconditional(2))
    assert len(oracle.paid) == 4
    recorded(tmp_path / "a.db", oracle, noisy=True)(x, unconditional(2))
    assert len(oracle.paid) == 6


class Streamed(Oracle):
    """Says each number at once, and dies on the way."""

    on_result: Any = None

    def __call__(self, x: torch.Tensor, c: Any) -> Any:
        for row, number in enumerate(x[:, 0].tolist()):
            if number == self.bad:
                raise KeyboardInterrupt
            self.paid.append(number)
            self.on_result(row, number**2)
        return x[:, 0].square()


def test_what_was_said_before_a_batch_was_done_is_kept(tmp_path):
    oracle = Streamed(bad=3.0)
    with pytest.raises(KeyboardInterrupt):
        recorded(tmp_path / "a.db", oracle)(samples(1.0, 2.0, 3.0, 4.0), unconditional(4))
    oracle.bad = -1.0
    answers = recorded(tmp_path / "a.db", oracle)(samples(1.0, 2.0, 3.0, 4.0), unconditional(4))
    assert answers == [1, 4, 9, 16] and oracle.paid == [1, 2, 3, 4]


def test_a_claim_of_the_dead_is_void_and_one_of_the_living_is_not(tmp_path):
    ledger, oracle = Ledger(tmp_path / "a.db"), Oracle()
    reward = recorded(ledger.path, oracle)
    keys = reward._keys(samples(1.0), unconditional(1))
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with ledger.writing() as db:
            db.execute(
                "INSERT INTO claim VALUES (?, ?, ?, ?, ?, ?)", (*keys[0], owner(sleeper.pid), time.time())
            )
        assert reward._claim(keys) == ({}, [])
    finally:
        sleeper.kill()
        sleeper.wait()
    assert reward(samples(1.0), unconditional(1)) == [1]


# a process that asks for 40 samples, in batches of 4, and writes down each payment in a file of its own
ASKER = """
import os, sys, time, torch
from difftilt.rewards.ledger import Ledger, Recorded
def oracle(x, c):
    for n in x[:, 0].tolist():
        time.sleep(0.002)
        with open(sys.argv[2], "ab", buffering=0) as file:
            file.write(f"{int(n)}\\n".encode())
    return x[:, 0].square()
reward = Recorded(oracle, Ledger(sys.argv[1]), "dock", "1")
numbers = torch.randperm(40, generator=torch.Generator().manual_seed(int(sys.argv[3]))).float()
for part in numbers.split(4):
    assert reward(part[:, None], {"n": part}) == part.square().tolist()
"""


def asker(tmp_path: Path, seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", ASKER, str(tmp_path / "a.db"), str(tmp_path / "paid"), str(seed)]
    return subprocess.Popen(command)


def test_processes_that_share_a_ledger_pay_once(tmp_path):
    running = [asker(tmp_path, seed) for seed in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    paid = (tmp_path / "paid").read_text().split()
    assert sorted(map(int, paid)) == list(range(40))


def test_a_kill_costs_at_most_the_batch_that_was_asked(tmp_path):
    kills = 0
    for seed in range(4):
        process = asker(tmp_path, seed)
        before = time.monotonic()
        while not (tmp_path / "paid").exists() or len((tmp_path / "paid").read_text().split()) < 6 * (
            seed + 1
        ):
            assert time.monotonic() - before < 60
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 4
    assert asker(tmp_path, 9).wait(120) == 0
    numbers = list(map(int, (tmp_path / "paid").read_text().split()))
    assert set(numbers) == set(range(40)) and len(numbers) <= 40 + 4 * kills
    assert sqlite3.connect(tmp_path / "a.db").execute("SELECT COUNT(*) FROM claim").fetchone() == (0,)


@pytest.mark.parametrize("kind", ["text", "folder", "fifo", "read-only"])
def test_what_is_no_ledger_is_refused_in_one_sentence(tmp_path, kind):
    path = tmp_path / "a.db"
    if kind == "text":
        path.write_text("sample,number\n" * 100)
    elif kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = Path("/proc/a.db")
    with pytest.raises(LedgerError, match=f"the ledger {path} cannot be used: .*; name a file"):
        recorded(path, Oracle())(samples(1.0), unconditional(1))


def test_rows_can_be_carried_to_another_ledger(tmp_path):
    oracle = Oracle()
    recorded(tmp_path / "a.db", oracle, spell=lambda x: [f"<{n:g}>" for n in x[:, 0]])(
        samples(1.5, 2.0), unconditional(2)
    )
    rows = Ledger(tmp_path / "a.db").rows()
    assert [row[5] for row in rows] == ["<1.5>", "<2>"]
    other = Ledger(tmp_path / "b.db")
    assert (other.add(rows), other.add(rows)) == (2, 0)
    assert recorded(other.path, oracle)(samples(2.0, 1.5), unconditional(2)) == [4.0, 2.25]
    assert len(oracle.paid) == 2
