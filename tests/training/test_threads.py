"""A model gets the fewest threads that it is quickest with, and nothing of it changes."""

import os
import time
from collections.abc import Callable

import pytest
import torch
import torch.nn as nn
from torch import Tensor
from toy_run import Net, make_policy

from difftilt.algorithms.minibatches import AT_ONCE
from difftilt.cli.runs import recipe_of
from difftilt.conditions import unconditional
from difftilt.shapes import Cond
from difftilt.training.threads import quickest, using


class Slow(nn.Module):
    """A network that takes what is said for a number of threads."""

    def __init__(self, network: nn.Module, seconds: Callable[[int], float]):
        super().__init__()
        self.network, self.seconds, self.passes = network, seconds, 0

    def forward(self, x: Tensor, time_: Tensor, cond: Cond) -> Tensor:
        self.passes += 1
        time.sleep(self.seconds(torch.get_num_threads()))
        return self.network(x, time_, cond)


class Wide(nn.Module):
    """A network of one weight, which tells how many rows pass."""

    def __init__(self, rows: list[int]):
        super().__init__()
        self.weight, self.rows = nn.Parameter(torch.ones(())), rows

    def forward(self, x: Tensor, time_: Tensor, cond: Cond) -> Tensor:
        self.rows.append(len(x))
        return self.weight * x


TIMES = {
    "more are quicker": (lambda n: 0.06 / n, 8),
    "more bring nothing": (lambda n: 0.02, 1),
    "more are slower": (lambda n: 0.005 * n, 1),
    "more than two bring little": (lambda n: {1: 0.06, 2: 0.03, 4: 0.029, 8: 0.029}[n], 2),
}


@pytest.mark.parametrize("name", TIMES)
def test_the_fewest_that_are_quickest(name):
    seconds, found = TIMES[name]
    policy = make_policy()
    policy.network = Slow(policy.network, seconds)
    with using(8):
        assert quickest(policy, unconditional(4)) == found
        assert torch.get_num_threads() == 8


def test_a_long_pass_is_not_repeated():
    policy = make_policy()
    policy.network = Slow(policy.network, lambda n: 0.15)
    with using(2):
        quickest(policy, unconditional(4))
    assert policy.network.passes == 2


def test_processes_share_and_one_thread_is_not_measured(monkeypatch):
    policy = make_policy()
    policy.network = Slow(policy.network, lambda n: 0.0)
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "2")
    with using(2):
        assert quickest(policy, unconditional(4)) == 1
    assert policy.network.passes == 0


def test_nothing_changes():
    policy, network = make_policy(), Net()
    dropout = nn.Dropout(0.5).eval()
    network.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), dropout, nn.SiLU(), nn.Linear(8, 1))
    policy.network = network
    before = {name: x.clone() for name, x in policy.state_dict().items()}
    generator = torch.get_rng_state()
    with using(2):
        quickest(policy, unconditional(4))
    assert all(torch.equal(x, before[name]) for name, x in policy.state_dict().items())
    assert all(p.grad is None for p in policy.parameters())
    assert [m.training for m in network.layers] == [True, True, False, True, True]
    assert torch.equal(torch.get_rng_state(), generator)


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), using(3):
        assert torch.get_num_threads() == 3
        raise ZeroDivisionError
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("recipe", ["digits", "dna", "molecules"])
@pytest.mark.parametrize("learns", [True, False])
def test_a_recipe_is_measured_and_left_as_it_is(recipe, learns):
    job = recipe_of(recipe)(**({"reward": "ink"} if recipe == "digits" else {}))
    before = {name: x.clone() for name, x in job.policy.state_dict().items()}
    with using(2), torch.set_grad_enabled(learns):
        assert job.threads() in (1, 2)
    assert all(torch.equal(x, before[name]) for name, x in job.policy.state_dict().items())
    assert all(p.grad is None for p in job.policy.parameters())


def test_no_more_large_states_pass_than_in_training():
    policy, rows = make_policy(), []
    policy.shape = (AT_ONCE // 9,)
    policy.network = Wide(rows)
    with using(2):
        quickest(policy, unconditional(64))
    assert {*rows} == {9}
