"""A run with a ledger is killed again and again: it ends as the unbroken one did and pays nothing twice."""

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import at_operation
from torch import Tensor
from toy_run import Job, remains

from difftilt.rewards.ledger import Ledger
from difftilt.rewards.scoring import Scoring, begin, guarded

ROUNDS, KILLS, BATCH = 20, 12, 16


class Oracle:
    """Costs something: each payment is a line in a file. It dies at one of its payments, if asked to."""

    def __init__(self, folder: Path, noisy: bool, failing: bool, last: int):
        self.path, self.noisy, self.failing, self.last = folder / "paid", noisy, failing, last

    def __call__(self, x: Tensor, c: Any) -> Tensor:
        noise = torch.tensor([int.from_bytes(os.urandom(2)) / 2**16 for _ in x]) if self.noisy else 0
        for number in x[:, 0].tolist():
            with self.path.open("ab", buffering=0) as file:
                file.write(f"{number!r}\n".encode())
            self.last -= 1
            if self.last == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return (x[:, 0] + noise).where(~(self.failing & (x[:, 0] > 1.5)), torch.nan)


def life(folder: Path, settings: dict[str, Any], operation: int = 0, payment: int = 0) -> None:
    """A life that ends at the n-th file operation or payment, if one is given."""
    torch.set_num_threads(1)
    folder.mkdir(exist_ok=True)
    oracle = Oracle(folder, settings.get("reward_noisy", False), "on_error" in settings, payment)
    scoring = Scoring(ledger=folder / "ledger.db", reward_version="1", **settings)
    guard = guarded(oracle, "oracle", scoring)
    begin(guard, "the run")
    with at_operation(operation, lambda name: os.kill(os.getpid(), signal.SIGKILL)):
        Job(batch=BATCH, reward=guard).train(folder, ROUNDS)


def run(servant: Any, *arguments: Any) -> int:
    process = servant.Process(target=life, args=arguments)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("failing", [False, True])
def test_kills_leave_no_trace_and_cost_at_most_the_batch_that_was_asked(failing, servant, ram):
    settings = {"on_error": "drop"} if failing else {}
    assert run(servant, ram / "whole", settings) == 0
    dice, inside = random.Random(0), 0
    for kill in range(KILLS):
        aimed = (dice.randint(20, 120), 0) if kill % 2 else (0, dice.randint(1, 3 * BATCH))
        code = run(servant, ram / "broken", settings, *aimed)
        assert code in (-signal.SIGKILL, 0)
        inside += bool(aimed[1]) and code != 0
    assert inside >= KILLS // 4
    assert run(servant, ram / "broken", settings) == 0
    assert remains(ram / "broken") == remains(ram / "whole")
    paid = (ram / "broken" / "paid").read_text().split()
    if failing:  # what failed is asked again
        assert max(map(float, paid)) > 1.5
        paid = [number for number in paid if float(number) <= 1.5]
    assert len(paid) - len(set(paid)) <= inside * BATCH


@pytest.mark.parametrize("noisy", [False, True])
def test_a_kill_outside_of_the_reward_costs_nothing(noisy, servant, ram):
    dice, landed, settings = random.Random(1), 0, {"reward_noisy": noisy}
    for _ in range(KILLS):
        landed += run(servant, ram / "broken", settings, dice.randint(20, 120)) == -signal.SIGKILL
    assert landed >= KILLS // 2
    assert run(servant, ram / "broken", settings) == 0
    paid = (ram / "broken" / "paid").read_text().split()
    assert len(paid) == len(set(paid)) >= ROUNDS * BATCH


def test_a_noisy_run_that_goes_on_is_the_unbroken_one(servant, ram):
    settings = {"reward_noisy": True}
    assert run(servant, ram / "whole", settings) == 0
    (ram / "broken").mkdir()
    Ledger(ram / "broken" / "ledger.db").add(Ledger(ram / "whole" / "ledger.db").rows())
    for operation in (30, 60, 90, 0):
        run(servant, ram / "broken", settings, operation)
    assert remains(ram / "broken") == remains(ram / "whole")
    assert not (ram / "broken" / "paid").exists()
