"""Reward backpropagation: its expected gradient is that of J, and each truncation is what it says."""

import problems
import pytest
import torch
import torch.nn as nn
from problems import cosine, flat

from difftilt import transition
from difftilt.algorithms import backprop
from difftilt.algorithms.backprop import Backprop
from difftilt.conditions import unconditional
from difftilt.exact import gaussian
from difftilt.guard import RewardError
from difftilt.objective import Objective
from difftilt.policy import law

COSINE, LENGTH = 0.999, 0.02


def gradient(problem, policy=None, size=20_000, alpha=None, **settings):
    """Upwards, of one round's only loss."""
    torch.manual_seed(1)
    policy = policy or problem.elsewhere
    objective = problem.objective
    if alpha:
        objective = Objective(objective.reward, objective.reference, alpha)
    algorithm = Backprop(minibatches=1, **{"recompute": False, **settings})
    (loss,) = algorithm.losses(policy, objective, unconditional(size))
    return -flat(loss.value, policy)


def exact(problem):
    return flat(problem.exact(problem.elsewhere), problem.elsewhere)


def agrees(found, expected):
    length = (found.norm() / expected.norm()).item()
    return cosine(found, expected) >= COSINE and abs(length - 1) <= LENGTH


@pytest.fixture
def problem():
    return problems.affine(dimension=2)


def test_the_expected_gradient_is_exact(problem):
    assert agrees(gradient(problem), exact(problem))


def one_step_off(policy, x, t, cond):
    return law(policy, x, torch.where(t <= policy.steps, (t - 1).clamp(min=1), t), cond)


def blind_reference(policy, x, t, cond):
    """The KL's gradient through x_t is lost where the reference sees a detached state."""
    trained = any(p.requires_grad for p in policy.parameters())
    return law(policy, x if trained else x.detach(), t, cond)


@pytest.mark.parametrize("broken", [one_step_off, blind_reference], ids=lambda f: f.__name__)
def test_the_gradient_test_notices_a_wrong_law(problem, monkeypatch, broken):
    monkeypatch.setattr(backprop, "law", broken)
    assert not agrees(gradient(problem), exact(problem))


def test_the_gradient_test_notices_a_mean_over_the_event(problem, monkeypatch):
    expected = exact(problem)
    monkeypatch.setattr(transition, "event_sum", lambda x: x.flatten(1).double().mean(1))
    assert not agrees(gradient(problem), expected)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1e-12}, {"alpha": 0.25}, {"alpha": 1.0}, {"through": "last", "last": 3}], ids=str
)
def test_the_gradient_test_notices_a_wrong_setting(problem, wrong):
    assert not agrees(gradient(problem, **wrong), exact(problem))


@pytest.mark.parametrize("through", ["full", "last", "random"])
def test_recomputing_changes_no_bit(problem, through):
    kept, again = (
        gradient(problem, size=50, through=through, recompute=recompute) for recompute in (False, True)
    )
    assert torch.equal(kept, again)


@pytest.mark.parametrize(("tune_initial", "last"), [(True, 4), (False, 3)])
def test_the_last_of_all_steps_is_the_full_gradient(problem, tune_initial, last):
    chain = gaussian.affine(problem.elsewhere)
    policy = gaussian.AffinePolicy(chain, tune_std=True, tune_initial=tune_initial)
    full = gradient(problem, policy, size=50)
    assert torch.equal(gradient(problem, policy, size=50, through="last", last=last), full)
    assert not torch.equal(gradient(problem, policy, size=50, through="last", last=last - 1), full)


def test_the_bias_of_truncation_shrinks_with_every_step_that_is_kept(problem):
    expected = exact(problem)
    bias = [(gradient(problem, through="last", last=k) - expected).norm() for k in range(1, 5)]
    assert bias == sorted(bias, reverse=True)
    assert bias[-1] < 0.05 * bias[0]


def test_random_truncation_averages_over_fixed_ones(problem):
    """One cut per chain makes each chain's gradient that of some K, which new cuts per step would not."""
    fixed = [gradient(problem, through="last", last=k) for k in (1, 2, 3)]
    found = gradient(problem, through="random")
    assert agrees(found, torch.stack(fixed).mean(0))
    assert not any(agrees(found, one) for one in [*fixed, gradient(problem)])


def test_random_truncation_is_drawn_once_per_chain(problem, monkeypatch):
    drawn, draw = [], torch.randint

    def counted(*args, **kwargs):
        drawn.append(draw(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(torch, "randint", counted)
    gradient(problem, size=100, through="random", recompute=True)
    assert [len(x) for x in drawn] == [100]
    assert drawn[0].unique().tolist() == [1, 2, 3]


class PerChain(nn.Module):
    """A denoiser with a parameter of its own for each row of the batch: every chain's gradient is seen."""

    def __init__(self, base, size):
        super().__init__()
        self.base, self.own = base, nn.Parameter(torch.zeros(size, 1, dtype=torch.float64))

    def forward(self, x, time, cond):
        return self.base(x, time, cond) + self.own * x


def test_draws_of_low_variance_have_the_same_mean_and_less_variance(size=20_000):
    problem = problems.reversal()
    policy = problem.start.requires_grad_(False)
    policy.network = PerChain(policy.network, size)
    runs = {"one": {"through": "last"}, "draws": {"through": "low_variance", "draws": 8}}
    found = {name: gradient(problem, policy, size=size, **settings) * size for name, settings in runs.items()}
    one, draws = found["one"], found["draws"]
    error = (one.var() / size + draws.var() / size).sqrt()
    assert abs(one.mean() - draws.mean()) < 3 * error < 0.1
    # the gradient is x_1, whose siblings correlate with it, and with each other, by alpha_1^2 = 0.7
    assert one.var().item() == pytest.approx(1, rel=0.05)
    assert draws.var().item() == pytest.approx((1 + 8 * 0.7) / 9, rel=0.05)


def test_low_variance_needs_a_chain_that_noises(problem):
    with pytest.raises(ValueError, match="AffinePolicy is not; use 'last'"):
        gradient(problem, size=8, through="low_variance")


def test_a_reward_without_a_gradient_is_named(problem):
    def frozen(x, cond):
        return x.detach().sum(1)

    objective = Objective(frozen, problem.objective.reference, 0.5)
    with pytest.raises(RewardError, match="reward 'frozen' detaches its input"):
        list(Backprop().losses(problem.elsewhere, objective, unconditional(16)))


def test_a_batch_without_enough_parts_is_refused(problem):
    with pytest.raises(ValueError, match="a batch of 7 has no 8 parts"):
        list(Backprop(minibatches=8).losses(problem.elsewhere, problem.objective, unconditional(7)))


def test_every_part_is_its_own_batch(problem):
    losses = list(Backprop(minibatches=3).losses(problem.elsewhere, problem.objective, unconditional(10)))
    assert len(losses) == 3
    assert len({loss.value.item() for loss in losses}) == 3
