"""What the settings of a reward build, and what tells the versions of a reward apart."""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from difftilt.answers import BudgetSpent
from difftilt.conditions import unconditional
from difftilt.domains.digits.model import load_classifier
from difftilt.rewards.command import CommandReward
from difftilt.rewards.fingerprint import fingerprint
from difftilt.rewards.image import class_log_prob, ink
from difftilt.rewards.ledger import Ledger
from difftilt.rewards.scoring import Scoring, begin, guarded

X, ANY = torch.arange(4.0)[:, None], unconditional(4)


def load(path: Path, text: str) -> Any:
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rewards_that_differ_have_different_fingerprints(tmp_path):
    classifier = load_classifier("proxy")
    text = "FACTOR = 2\ndef score(x, c):\n    return FACTOR * x[:, 0]\n"
    script, other = tmp_path / "dock.sh", tmp_path / "receptor.pdb"
    script.write_text("#!/bin/sh\ncat\n")
    script.chmod(0o755)
    other.write_text("ATOM 1")
    command: Any = lambda words: CommandReward(words, lambda x: [], 1.0)  # noqa: E731
    kinds = [
        class_log_prob(classifier, 3),
        class_log_prob(classifier, 4),
        class_log_prob(load_classifier("gold"), 3),
        ink,
        functools.partial(ink, cond={}),
        load(tmp_path / "a.py", text).score,
        load(tmp_path / "b.py", text.replace("2", "3")).score,
        command(f"{script} {other}"),
        command(f"{script} --fast {other}"),
        torch.nn.Linear(1, 1),
        torch.nn.Linear(1, 1),
        lambda x, c: x[:, 0],
        lambda x, c: -x[:, 0],
    ]
    prints = [fingerprint(kind, "r") for kind in kinds]
    assert len(set(prints)) == len(kinds)
    assert prints == [fingerprint(kind, "r") for kind in kinds]
    assert prints[0] == fingerprint(class_log_prob(load_classifier("proxy"), 3), "r")
    assert prints[5] == fingerprint(load(tmp_path / "c.py", text).score, "r")


def test_a_reward_that_cannot_be_looked_into_needs_a_version(tmp_path):
    secret = (number for number in range(3))
    reward: Any = lambda x, c: x[:, 0] + next(secret)  # noqa: E731
    with pytest.raises(ValueError, match=r"'r' apart, but it holds a generator.*--reward-version"):
        guarded(reward, "r", Scoring(ledger=tmp_path / "a.db"))
    guarded(reward, "r", Scoring(ledger=tmp_path / "a.db", reward_version="7"))(X, ANY)
    assert {row[1] for row in Ledger(tmp_path / "a.db").rows()} == {"7"}


def test_a_ledger_serves_the_next_run_and_calls_stay_what_they_are(tmp_path):
    paid: list[int] = []

    def reward(x: Any, c: Any) -> Any:
        paid.append(len(x))
        return x[:, 0]

    settings = Scoring(ledger=tmp_path / "a.db", reward_version="1")
    for _ in range(2):  # the second is another run, whose own count is the same
        guard = guarded(reward, "r", settings)
        assert guard(X, ANY).tolist() == guard(X, ANY).tolist() == [0, 1, 2, 3]
        assert guard.calls == 4
    assert sum(paid) == 4


def test_a_noisy_reward_is_asked_anew_but_not_by_a_run_that_goes_on(tmp_path):
    generator = torch.Generator().manual_seed(0)
    reward: Any = lambda x, c: torch.randn(len(x), generator=generator)  # noqa: E731
    settings = Scoring(ledger=tmp_path / "a.db", reward_version="1", reward_noisy=True)
    guard = guarded(reward, "r", settings)
    begin(guard, "run/0")
    start, first = guard.state_dict(), guard(X, ANY)
    assert not guard(X, ANY).equal(first) and guard.calls == 8
    again = guarded(reward, "r", settings)
    begin(again, "run/0")
    again.load_state_dict(start)
    assert again(X, ANY).equal(first)
    assert len(Ledger(tmp_path / "a.db").rows()) == 8
    with pytest.raises(ValueError, match="got a cache for a noisy reward"):
        Scoring(cache=True, reward_noisy=True)


def test_a_budget_is_never_exceeded():
    guard = guarded(lambda x, c: x[:, 0], "r", Scoring(reward_budget=10, on_error="drop"))
    for _ in range(2):
        guard(X, ANY)
    with pytest.raises(BudgetSpent, match="8 of at most 10 calls of reward 'r' are spent, and the next 4"):
        guard(X, ANY)
    assert guard(X[:2], unconditional(2)).tolist() == [0, 1] and guard.calls == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"on_error": "penalty"}, "'penalty' got penalty None"),
        ({"penalty": -1.0}, "'stop' got penalty -1.0"),
    ],
)
def test_a_penalty_is_stated_where_it_is_asked_for(settings, message):
    with pytest.raises(ValueError, match=message):
        guarded(lambda x, c: x[:, 0], "r", Scoring(**settings))
