import pytest
import torch
import torch.nn as nn

from difftilt.algorithms.minibatches import minibatches
from difftilt.conditions import unconditional
from difftilt.networks.micro_batch import MicroBatch
from difftilt.policy import Trajectory
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import linear

DECISIONS, BATCH = 5, 4
ROWS = list(range(DECISIONS * BATCH))
PLAIN = GaussianPolicy(nn.Identity(), linear(DECISIONS - 1), (2,))


@pytest.fixture
def path():
    states = torch.zeros(DECISIONS, BATCH, 2)
    return Trajectory(states, states[-1], torch.zeros(DECISIONS, BATCH), unconditional(BATCH))


def test_minibatches_deal_every_row_once(path):
    dealt, shares = zip(*minibatches(PLAIN, path, 5), strict=True)
    assert len(dealt) == 5 and shares == (1.0,) * 5
    assert torch.cat(dealt).sort().values.tolist() == ROWS
    assert torch.cat(dealt).tolist() != torch.cat([part for part, _ in minibatches(PLAIN, path, 5)]).tolist()


def test_a_minibatch_passes_in_parts_of_all_decisions(path, monkeypatch):
    monkeypatch.setattr("difftilt.algorithms.minibatches.AT_ONCE", 0)
    monkeypatch.setattr("difftilt.algorithms.minibatches.LEAST", 3)
    dealt, shares = zip(*minibatches(PLAIN, path, 1), strict=True)
    assert torch.cat(dealt).sort().values.tolist() == ROWS
    assert max(map(len, dealt)) == 3 and sum(shares) == pytest.approx(1)
    assert all((part >= BATCH).any() for part in dealt)  # draws of x_T alone may have no gradient


def test_a_minibatch_passes_in_the_micro_batches_of_its_network(path):
    policy = GaussianPolicy(MicroBatch(nn.Identity(), 3, one_time=True), linear(DECISIONS - 1), (2,))
    dealt, shares = zip(*minibatches(policy, path, 1), strict=True)
    assert torch.cat(dealt).sort().values.tolist() == ROWS
    assert sum(shares) == pytest.approx(1)
    for part in dealt:
        passed = part[part >= BATCH]
        assert 1 <= len(passed) <= 3 and len((passed // BATCH).unique()) == 1


def test_too_few_rows_for_so_many_minibatches_are_refused(path):
    assert sum(len(part) for part, _ in minibatches(PLAIN, path, 3, share=0.5)) == len(ROWS) / 2
    with pytest.raises(ValueError, match="16 rows after x_T cannot be dealt into 17 minibatches"):
        list(minibatches(PLAIN, path, 17))
