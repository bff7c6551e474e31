"""Nested Monte Carlo: unbiased for exp(v / alpha), whatever the number of chains."""

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.processes.masked import MaskedPolicy
from difftilt.transition import one_hot
from difftilt.values.nested import NestedMonteCarlo

F64 = torch.float64
STATES, STEPS, ALPHA = 4, 3, 0.5
COPIES = 2000


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    score, reference = torch.randn(STATES, dtype=F64), tabular.random_chain(STATES, STEPS)
    return Objective(lambda x, c: score[x[:, 0]], reference.requires_grad_(False), ALPHA)


def every_row():
    """All states at all t > 0, in one batch of mixed t."""
    x = torch.arange(STATES).repeat(STEPS)[:, None].repeat_interleave(COPIES, 0)
    t = torch.arange(1, STEPS + 1).repeat_interleave(STATES).repeat_interleave(COPIES)
    return x, t


def deviations(value, exact):
    """Of the mean of exp(v / alpha) from the exact one, in standard errors, and the relative errors."""
    x, t = every_row()
    found = (value(x, t, unconditional(len(x))) / ALPHA).exp().view(-1, COPIES)
    wanted = (exact[1:] / ALPHA).exp().flatten()
    se = found.std(1) / COPIES**0.5
    return (found.mean(1) - wanted) / se, se / wanted


@pytest.mark.parametrize("rollouts", [1, 5])
def test_is_unbiased_for_the_exponential(problem, rollouts):
    torch.manual_seed(1)
    off, relative = deviations(NestedMonteCarlo(problem, rollouts), tabular.solve(problem).values)
    assert off.abs().max() < 4
    assert relative.max() < 0.06


@pytest.mark.parametrize("shift", [-1, 1])
def test_another_number_of_steps_would_be_noticed(problem, shift):
    torch.manual_seed(1)
    off, _ = deviations(NestedMonteCarlo(problem, 5), tabular.solve(problem).values.roll(shift, 0))
    assert off.abs().max() > 8


def test_lies_below_the_value_and_nears_it(problem):
    torch.manual_seed(2)
    x, t = every_row()
    exact = tabular.solve(problem).values[t, x[:, 0]]
    gaps = [
        (exact - NestedMonteCarlo(problem, n)(x, t, unconditional(len(x)))).mean().item() for n in (1, 4, 16)
    ]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_at_the_end_it_is_the_reward_and_calls_are_counted(problem):
    x, t = torch.arange(STATES)[:, None], torch.tensor([0, 2, 0, 1])
    calls = problem.reward.calls
    found = NestedMonteCarlo(problem, 8)(x, t, unconditional(STATES))
    assert problem.reward.calls - calls == 2 + 2 * 8
    assert torch.equal(found[t == 0], problem.reward(x[t == 0], unconditional(2)))


class Flat(torch.nn.Module):
    def forward(self, x, t, cond):
        return torch.zeros(len(x), 3, 2)


def test_tokens_may_come_as_one_hot_vectors_and_the_state_given_stays():
    """With masks that become fair coins the value of the sum of bits is the mean of a known power."""
    reference = MaskedPolicy(Flat(), 2, 3)
    objective = Objective(lambda x, c: x.double().sum(1), reference, 1.0)
    x = torch.tensor([[2, 1, 2]]).expand(COPIES, -1).clone()
    before, t = x.clone(), torch.full((COPIES,), 2)
    for state in (x, one_hot(x, 3).double()):
        found = NestedMonteCarlo(objective, 2)(state, t, unconditional(COPIES)).exp()
        wanted = torch.e * ((1 + torch.e) / 2) ** 2
        assert abs(found.mean() - wanted) < 4 * found.std() / COPIES**0.5 < 0.05 * wanted
    assert torch.equal(x, before)


def test_chains_whose_reward_failed_are_left_out():
    reference = MaskedPolicy(Flat(), 2, 3)
    patchy = Guard(lambda x, c: torch.where(x[:, 0] == 1, torch.nan, 0.7), "patchy", on_error="drop")
    value = NestedMonteCarlo(Objective(patchy, reference, 1.0), 50)
    found = value(torch.tensor([[2, 2, 2], [1, 2, 2]]), torch.tensor([3, 2]), unconditional(2))
    assert found[0].item() == pytest.approx(0.7)
    assert found[1].isnan()


def test_needs_a_chain():
    with pytest.raises(ValueError, match="rollouts must be >= 1, but got 0"):
        NestedMonteCarlo(Objective(lambda x, c: x[:, 0], tabular.random_chain(2, 1), 1.0), 0)
