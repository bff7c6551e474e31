"""Advantages against loops over the groups, and the clipped surrogate against its definition."""

import math

import pytest
import torch

from difftilt.algorithms import advantages

IDS = torch.tensor([0, 1, 0, 2, 1, 0, 0])


@pytest.fixture
def returns():
    torch.manual_seed(0)
    return torch.randn(3, len(IDS), dtype=torch.float64)


def test_group_is_what_a_loop_says(returns):
    plain = advantages.group(returns, IDS)
    scaled = plain / advantages.spread(returns, IDS)
    for row in range(len(returns)):
        for i, own in enumerate(IDS):
            members = returns[row, own == IDS]
            assert plain[row, i].item() == pytest.approx((returns[row, i] - members.mean()).item())
            deviation = members.std(correction=0).item() + advantages.EPS
            assert scaled[row, i].item() == pytest.approx(plain[row, i].item() / deviation)


def test_leave_one_out_is_what_a_loop_says(returns):
    found = advantages.leave_one_out(returns, IDS)
    for row in range(len(returns)):
        for i, own in enumerate(IDS):
            others = [returns[row, j].item() for j in range(len(IDS)) if j != i and IDS[j] == own]
            expected = returns[row, i].item() - sum(others) / len(others) if others else 0.0
            assert found[row, i].item() == pytest.approx(expected)


def test_groups_without_spread_or_company_learn_nothing():
    ids, equal = torch.tensor([0, 0, 1]), torch.tensor([[2.0, 2.0, 5.0]])
    for advantage in (advantages.group(equal, ids), advantages.leave_one_out(equal, ids)):
        assert advantage.abs().max() == 0


def test_centred_advantages_have_no_mean(returns):
    advantage = advantages.centre(returns + 7)
    torch.testing.assert_close(advantage.mean(1), torch.zeros(3, dtype=torch.float64))


def test_weights_are_exponentials_of_mean_one_in_each_group():
    log_w = torch.tensor([0.0, 1000.0, 1.0, 5.0, 1001.0, 2.0, -torch.inf], dtype=torch.float64)
    found = advantages.group_softmax(log_w, IDS)
    for own in IDS.unique():
        members = log_w[own == IDS]
        expected = (members - members.max()).exp()
        torch.testing.assert_close(found[own == IDS], expected / expected.mean())


@pytest.mark.parametrize("dimensions", [1, 40])
def test_the_clipped_surrogate_is_its_definition(dimensions):
    clip, log_w = 0.2, torch.linspace(-20, 20, 81, dtype=torch.float64)
    for advantage in (-1.5, 2.0):
        found = advantages.clipped_surrogate(log_w, torch.full_like(log_w, advantage), clip, dimensions)
        for one, value in zip(log_w.tolist(), found.tolist(), strict=True):
            per_dim = min(max(math.exp(one / dimensions), 1 - clip), 1 + clip)
            expected = min(math.exp(one) * advantage, per_dim**dimensions * advantage)
            assert value == pytest.approx(expected, rel=1e-9)


def test_beyond_the_clip_only_the_way_back_has_a_gradient():
    log_w = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0])
    (gradient,) = torch.autograd.grad(advantages.clipped_surrogate(log_w, advantage, 0.2).sum(), log_w)
    assert (gradient != 0).tolist() == [False, True, True, False]
