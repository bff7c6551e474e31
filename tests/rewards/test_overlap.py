"""A batch that is drawn in parts: one is scored while the next is drawn, and nothing else changes."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn

from difftilt.answers import BudgetSpent
from difftilt.exact.toy import gmm_schedule
from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.rewards.ledger import Ledger, Recorded
from difftilt.rewards.workers import Workers
from difftilt.shapes import Cond, Sample

NAMES = [f"n{i % 3}" for i in range(10)]
COND: Cond = {"name": NAMES}


class Half(nn.Module):
    """A network that calls something first."""

    def __init__(self, before: Callable[[], object]):
        super().__init__()
        self.before = before

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Cond) -> torch.Tensor:
        self.before()
        return x / 2


def chain(before: Callable[[], object] = lambda: None) -> GaussianPolicy:
    law: dict[str, Any] = {"prediction_type": "sample", "noise": FixedLarge()}
    return GaussianPolicy(Half(before), gmm_schedule(steps=3), (2,), **law)


def answers(path: Path, kind: str, ahead: bool) -> tuple[list[torch.Tensor], int, list[str]]:
    """What two rounds and a batch that holds everything twice are worth, the calls, and what was paid for."""
    paid = path / "paid"
    paid.write_text("")

    def reward(x: Sample, cond: Cond) -> torch.Tensor:
        with paid.open("ab", buffering=0) as file:
            file.write(f"{x.sum().item()!r}\n".encode())
        return x[:, 0] + torch.rand(1)

    with Workers(reward, 2, 60, seed=3) as workers:
        asked: Any = workers
        if "ledger" in kind:
            asked = Recorded(workers, Ledger(path / f"{ahead}.db"), "dice", "1", noisy=kind == "noisy ledger")
        guard = Guard(asked, cache=kind in ("cache", "ledger"), overlap=3)
        if not ahead:
            guard.prefetch = lambda sample, cond, batch: None
        torch.manual_seed(0)
        policy = chain()
        rounds = [Objective(guard, policy, 0.1).sample(policy, COND) for _ in range(2)]
        again = torch.cat([rounds[0].path.sample] * 2)
        for part in (slice(0, 7), slice(7, 20)):
            guard.prefetch(again[part], {"name": [*NAMES, *NAMES][part]}, 20)
        return (
            [*(seen.reward for seen in rounds), guard(again, {"name": NAMES * 2})],
            guard.calls,
            sorted(paid.read_text().split()),
        )


@pytest.mark.parametrize("kind", ["workers", "cache", "ledger", "noisy ledger"])
def test_what_is_scored_ahead_is_answered_the_same_and_paid_once(kind, tmp_path):
    ahead, after = (answers(tmp_path, kind, value) for value in (True, False))
    assert all(map(torch.equal, ahead[0], after[0]))
    assert ahead[1:] == after[1:]
    assert len(ahead[2]) == (20 if kind in ("cache", "ledger") else 40)


def test_workers_score_one_part_while_the_next_is_drawn(tmp_path):
    begun, waited, deadline = tmp_path / "begun", [], time.monotonic() + 60

    def reward(x: Sample, cond: Cond) -> torch.Tensor:
        begun.touch()
        return x[:, 0]

    def before() -> None:
        waited.append(begun.exists())
        while len(waited) > 3 and not begun.exists() and time.monotonic() < deadline:
            time.sleep(0.005)  # until what the first part's three steps have drawn is scored

    with Workers(reward, 1, 60) as workers:
        Objective(Guard(workers, overlap=2), chain(), 0.1).sample(chain(before), COND)
    assert begun.exists() and time.monotonic() < deadline
    assert not any(waited[:3]) and len(waited) == 6


def test_samples_that_might_not_fit_the_budget_are_not_begun():
    begun = []

    class Eager:
        def __call__(self, x: Sample, cond: Cond) -> torch.Tensor:
            return x[:, 0]

        def prefetch(self, x: Sample, cond: Cond) -> None:
            begun.append(len(x))

    policy = chain()
    objective = Objective(Guard(Eager(), budget=15, overlap=2), policy, 0.1)
    objective.sample(policy, COND)
    with pytest.raises(BudgetSpent):
        objective.sample(policy, COND)
    assert begun == [5, 5]


def test_chains_that_are_drawn_in_parts_keep_their_distributions():
    policy = chain()
    seen = Objective(Guard(lambda x, c: x[:, 0], overlap=3), policy, 0.1).sample(policy, COND, keep=True)
    assert seen.path.cond is COND and seen.path.states.shape == (4, 10, 2)
    decisions = seen.path.states.flatten(0, 1)
    kept = seen.base(torch.arange(len(decisions)))
    assert torch.allclose(kept.log_prob(decisions), seen.log_reference.flatten())


def test_a_reward_that_was_quick_is_asked_all_the_same_so_that_it_forgets_what_was_begun(tmp_path):
    class Quick:
        """Has each answer before it is asked."""

        on_result: Callable[[int, float], None] | None = None

        def __init__(self):
            self.begun, self.calls = [], []

        def prefetch(self, x: Sample, cond: Cond) -> None:
            for number in x[:, 0].tolist():
                self.begun.append(number)
                assert self.on_result is not None
                self.on_result(len(self.begun) - 1, number)

        def __call__(self, x: Sample, cond: Cond) -> torch.Tensor:
            self.calls.append(x[:, 0].tolist())
            self.begun.clear()
            return x[:, 0]

    quick = Quick()
    reward = Recorded(quick, Ledger(tmp_path / "a.db"), "quick", "1")
    for first in (0.0, 4.0):
        x = torch.arange(first, first + 4)[:, None]
        for part in (x[:2], x[2:]):
            reward.prefetch(part, {"name": NAMES[:2]})
        assert reward(x, {"name": [*NAMES[:2]] * 2}) == x[:, 0].tolist()
    assert quick.calls == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [row[4] for row in reward.ledger.rows()] == list(range(8))


@pytest.mark.parametrize("noisy", [False, True])
def test_what_a_reward_draws_does_not_depend_on_what_a_ledger_knows(noisy, tmp_path):
    def reward(x: Sample, cond: Cond) -> torch.Tensor:
        return x[:, 0] + torch.rand(1)

    x, found, paid = torch.arange(10.0)[:, None], [], []
    for known in ([], [0, 3, 4, 8], range(10)):
        ledger = Ledger(tmp_path / f"{len(found)}.db")
        with Workers(reward, 2, 60, seed=3) as workers:
            asked = Recorded(workers, ledger, "dice", "1", noisy=noisy)
            asked.run = "the same"
            ledger.add(paid[i] for i in known)
            said = [asked(x[part], {"name": NAMES[part]}) for part in (slice(0, 6), slice(6, 10))]
            found.append((said, asked.state_dict()))
        paid = sorted(ledger.rows(), key=lambda row: row[4])
    assert found[0] == found[1] == found[2]
