"""Chains that are kept: who drew them, in which order, and what survives a checkpoint."""

import io
from typing import Any

import pytest
import torch

from difftilt.algorithms import replay
from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.guidance.tempered import Tempered
from difftilt.objective import Objective
from difftilt.policy import path_log_prob
from difftilt.transition import Gaussian

F64 = torch.float64


@pytest.fixture
def problem() -> Any:
    torch.manual_seed(0)
    score = torch.randn(4, dtype=F64)
    reference = tabular.random_chain(4, 3).requires_grad_(False)
    return Objective(lambda x, c: score[x[:, 0]], reference, 0.5), tabular.random_chain(4, 3)


def labelled(n):
    return {"number": torch.arange(n), "text": [f"chain {i}" for i in range(n)]}


@pytest.mark.parametrize(("explore", "own"), [(0.0, 10), (0.3, 7), (0.5, 5)])
def test_a_share_of_the_chains_explores(problem, explore, own):
    objective, policy = problem
    seen, pool = replay.draw(objective, policy, labelled(10), explore, 2.0)
    assert (len(seen.reward), len(pool)) == (own, 10)
    assert torch.equal(pool.reward[:own], seen.reward)
    assert torch.equal(pool.path.states[:, :own], seen.path.states)


def test_what_is_kept_is_true_of_the_chains_whoever_drew_them(problem):
    objective, policy = problem
    _, pool = replay.draw(objective, policy, labelled(20), 0.5, 3.0)
    torch.testing.assert_close(pool.log_reference, path_log_prob(objective.reference, pool.path))
    torch.testing.assert_close(pool.reward, objective.reward(pool.path.sample, pool.path.cond))
    drew = path_log_prob(policy, pool.path)
    tempered = path_log_prob(Tempered(policy, 3.0), pool.path)
    torch.testing.assert_close(pool.path.log_prob[:, :10], drew[:, :10])
    torch.testing.assert_close(pool.path.log_prob[:, 10:], tempered[:, 10:])
    assert not torch.allclose(drew, tempered)


def test_conditions_stay_with_their_chains(problem):
    objective, policy = problem
    _, pool = replay.draw(objective, policy, labelled(10), 0.4, 2.0)
    assert list(pool.path.cond["number"]) == list(range(10))
    assert pool.path.cond["text"] == [f"chain {i}" for i in range(10)]
    some = pool.chains(torch.tensor([7, 2]))
    assert some.path.cond["text"] == ["chain 7", "chain 2"]
    assert torch.equal(some.reward, pool.reward[[7, 2]])
    assert torch.equal(some.path.states, pool.path.states[:, [7, 2]])
    assert torch.equal(some.log_reference, pool.log_reference[:, [7, 2]])


def test_the_newest_are_the_last_that_were_joined(problem):
    objective, policy = problem
    parts = [replay.draw(objective, policy, labelled(n), 0.0, 2.0)[1] for n in (3, 5)]
    both = replay.join(parts)
    assert torch.equal(both.reward, torch.cat([part.reward for part in parts]))
    newest = both.newest(6)
    assert torch.equal(newest.reward, both.reward[2:])
    assert newest.path.cond["text"] == ["chain 2", *(f"chain {i}" for i in range(5))]
    assert len(both.newest(100)) == 8
    assert len(both.newest(0)) == 0


def test_a_checkpoint_of_plain_tensors_brings_the_chains_back(problem):
    objective, policy = problem
    _, pool = replay.draw(objective, policy, labelled(6), 0.5, 2.0)
    file = io.BytesIO()
    torch.save(replay.to_state(pool), file)
    file.seek(0)
    back = replay.from_state(torch.load(file, weights_only=True))
    for name in ("reward", "log_reference"):
        assert torch.equal(getattr(back, name), getattr(pool, name))
    for name in ("states", "sample", "log_prob"):
        assert torch.equal(getattr(back.path, name), getattr(pool.path, name))
    assert back.path.cond["text"] == pool.path.cond["text"]


def test_a_tempered_policy_is_the_policy_at_1_and_shares_its_weights(problem):
    _, policy = problem
    x, t, cond = torch.arange(4)[:, None], torch.full((4,), 2), unconditional(4)
    torch.testing.assert_close(Tempered(policy, 1.0)(x, t, cond).probs, policy(x, t, cond).probs)
    hot: Any = Tempered(policy, 2.0)
    root = policy(x, t, cond).probs.sqrt()
    torch.testing.assert_close(hot(x, t, cond).probs, root / root.sum(-1, keepdim=True))
    start = policy.initial(cond).probs.sqrt()
    torch.testing.assert_close(hot.initial(cond).probs, start / start.sum(-1, keepdim=True))
    with torch.no_grad():
        policy.get_parameter("network.weight").zero_()
    torch.testing.assert_close(hot(x, t, cond).probs, torch.full((4, 1, 4), 0.25, dtype=F64))


def test_a_tempered_gaussian_has_a_larger_variance():
    law = Gaussian(torch.zeros(2, 3), torch.full((2, 3), 0.5))
    hot = law.tempered(4.0)
    assert torch.equal(hot.mean, law.mean)
    torch.testing.assert_close(hot.std**2, 4 * law.std**2)
