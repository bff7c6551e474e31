"""`train` is a generator of rounds: what its caller changes between them is part of the run."""

import itertools
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from toy_run import Job, remains, rounds_saved

from difftilt.training.checkpoint import CheckpointError
from difftilt.training.load import load_totals, rounds_done
from difftilt.training.signals import Preempted


class Ruler:
    """A reward that is moved between rounds, as a learned one would be."""

    def __init__(self):
        self.level, self.seen = torch.zeros(()), 0

    def __call__(self, x, cond):
        return x[:, 0] - (x[:, 0] - self.level).square()

    def refit(self, reward: float) -> None:
        self.level = 0.5 * self.level + 0.5 * reward + 0.1 * torch.rand(())
        self.seen += 1

    def state_dict(self) -> dict[str, Any]:
        return {"level": self.level, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.level, self.seen = state["level"], state["seen"]


class Forgetful(Ruler):
    """The same without a state that is saved."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class Network(nn.Module):
    """A reward with weights."""

    def __init__(self, trainable: bool):
        super().__init__()
        self.linear = nn.Linear(1, 1).requires_grad_(trainable)

    def forward(self, x, cond):
        return self.linear(x)[:, 0]


def live(folder, rounds: int, kind=Ruler, fail_in: int = -1, **options: Any) -> Ruler:
    """A life whose body refits the reward; its state comes with the reward's guard."""
    ruler = kind()
    for ended in Job(reward=ruler).rounds(folder, rounds, **options):
        ruler.refit(ended.rows[-1]["reward"])
        if ended.number == fail_in:
            raise OverflowError
    return ruler


@pytest.mark.parametrize("save_every", [1, 2, 100])
def test_a_reward_that_is_refitted_goes_on_where_it_was(ram, save_every):
    whole = live(ram / "whole", 6, save_every=save_every)
    live(ram / "broken", 3, save_every=save_every)
    last = live(ram / "broken", 6, save_every=save_every)
    assert remains(ram / "broken") == remains(ram / "whole")
    assert last.seen == whole.seen == 6 and torch.equal(last.level, whole.level)


def test_a_reward_that_forgets_is_found_out(ram):
    """The comparison above can fail."""
    live(ram / "whole", 4, kind=Forgetful)
    live(ram / "broken", 2, kind=Forgetful)
    live(ram / "broken", 4, kind=Forgetful)
    assert remains(ram / "broken")["metrics.jsonl"] != remains(ram / "whole")["metrics.jsonl"]


@pytest.mark.parametrize("save_every", [1, 100])
def test_a_body_that_fails_leaves_the_rounds_whose_bodies_were_done(ram, save_every):
    with pytest.raises(OverflowError):
        live(ram / "broken", 6, fail_in=3, save_every=save_every)
    assert rounds_saved(ram / "broken") == 3
    live(ram / "broken", 6)
    live(ram / "whole", 6)
    assert remains(ram / "broken") == remains(ram / "whole")


def test_a_loop_that_is_left_can_be_gone_on_with(ram):
    for ended in itertools.islice(Job().rounds(ram / "broken", 6, save_every=100), 4):
        assert ended.totals.rounds == ended.number + 1
    assert rounds_saved(ram / "broken") == 3
    Job().train(ram / "broken", 6)
    Job().train(ram / "whole", 6)
    assert remains(ram / "broken") == remains(ram / "whole")


def test_a_signal_in_the_body_saves_what_the_body_did(ram):
    ruler = Ruler()
    with pytest.raises(Preempted):
        for ended in Job(reward=ruler).rounds(ram / "broken", 6, save_every=100):
            if ended.number == 2:
                signal.raise_signal(signal.SIGTERM)
            ruler.refit(ended.rows[-1]["reward"])
    live(ram / "broken", 6)
    live(ram / "whole", 6)
    assert remains(ram / "broken") == remains(ram / "whole")


def test_what_is_neither_policy_nor_reward_is_saved_if_it_is_named(ram):
    def run(folder, rounds: int, saved: bool = True) -> Ruler:
        job, memory = Job(), Ruler()
        for ended in job.rounds(folder, rounds, body=memory if saved else None):
            memory.refit(ended.rows[-1]["reward"])
        return memory

    whole = run(ram / "whole", 5)
    run(ram / "broken", 2)
    assert torch.equal(run(ram / "broken", 5).level, whole.level)
    assert remains(ram / "broken") == remains(ram / "whole")
    with pytest.raises(ValueError, match="state of the loop's body one, but got None"):
        run(ram / "broken", 6, saved=False)


@pytest.mark.parametrize("trainable", [True, False])
def test_a_network_is_saved_as_a_reward_if_it_can_learn(ram, trainable):
    for rounds in (1, 2):
        network = Network(trainable)
        for _ in Job(reward=network).rounds(ram, rounds):
            if trainable:
                network.linear.bias.data += 1
    again = Network(trainable)
    before = again.linear.bias.item()
    Job(reward=again).train(ram, 2)
    assert (again.linear.bias.item() != before) == trainable
    with pytest.raises(CheckpointError, match=r"state of reward .* which was .*, but got"):
        Job(reward=Network(not trainable)).train(ram, 3)


def test_rounds_say_what_they_saw_and_what_the_run_has_cost(ram):
    seen = [*Job().rounds(ram, 2), *Job().rounds(ram, 5)]
    assert [ended.number for ended in seen] == [0, 1, 2, 3, 4]
    assert [len(ended.rows) for ended in seen] == [2] * 5
    assert [ended.totals.reward_calls for ended in seen] == [16, 32, 48, 64, 80]
    assert {**vars(seen[-1].totals), "seconds": 0} == {**vars(load_totals(ram)), "seconds": 0}


def test_a_finished_run_is_told_from_one_that_is_not(ram):
    assert rounds_done(ram) == 0
    Job().train(ram, 3)
    assert rounds_done(ram) == 3
    assert list(Job().rounds(ram, 3)) == [] and load_totals(ram).rounds == 3
