"""The posterior mean's value, first and second order, against closed forms and against the exact value."""

import math

import pytest
import torch
from torch import nn

from difftilt.conditions import unconditional
from difftilt.exact import grid as exact_grid
from difftilt.exact import tabular
from difftilt.exact.toy import GaussianDenoiser, gmm, gmm_schedule
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import NoiseSchedule, from_betas
from difftilt.processes.simplex import SimplexPolicy, schedule
from difftilt.samplers.value_guidance import ValueGuided
from difftilt.values.tweedie import PosteriorMean

F64 = torch.float64
ALPHA = 0.5
MEAN, COV = torch.tensor([0.7, -0.2], dtype=F64), torch.tensor([[0.8, 0.3], [0.3, 0.5]], dtype=F64)
HESSIAN, SLOPE = (
    torch.tensor([[-0.9, 0.4], [0.4, 0.3]], dtype=F64),
    torch.tensor([0.5, -1.1], dtype=F64),
)


def levels() -> NoiseSchedule:
    return from_betas(torch.tensor([0.2, 0.4, 0.6], dtype=F64))


def plane(reward) -> Objective:
    """A chain of correlated Gaussian data in two dimensions."""
    denoiser = GaussianDenoiser(levels(), MEAN, COV)
    chain = GaussianPolicy(denoiser, levels(), (2,), prediction_type="sample", noise=FixedLarge())
    return Objective(reward, chain.double().requires_grad_(False), ALPHA)


def quadratic(x, c):
    return x @ SLOPE + ((x @ HESSIAN) * x).sum(1) / 2


def posterior(x, t):
    """Mean and covariance of x_0 given x_t = a x_0 + s z, by Bayes' rule."""
    a, s = levels().alpha[t], levels().sigma[t]
    cov = torch.linalg.inv(COV.inverse() + a**2 / s**2 * torch.eye(2))
    return (cov @ (COV.inverse() @ MEAN[:, None] + a / s**2 * x.T)).T, cov


def second(m, cov):
    """r(m) + tr(H C) / 2 + g' C g / (2 alpha)."""
    g = SLOPE + m @ HESSIAN
    return quadratic(m, None) + (HESSIAN @ cov).trace() / 2 + ((g @ cov) * g).sum(1) / (2 * ALPHA)


STATES = torch.tensor([[0.3, -0.8], [1.5, 0.2], [-1.0, 1.0]], dtype=F64)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_the_second_order_is_its_formula_with_the_covariance_of_bayes(t):
    """tr(H C) is estimated by random signs: without bias, and the less they differ the more there are."""
    torch.manual_seed(0)
    m, cov = posterior(STATES, t)
    x, time = STATES.repeat(4000, 1), torch.full((12_000,), t)
    spread = []
    for probes in (1, 9):
        found = PosteriorMean(plane(quadratic), order=2, probes=probes)(x, time, unconditional(len(x)))
        found = found.view(4000, 3)
        error = (found.mean(0) - second(m, cov)) / (found.std(0) / 4000**0.5)
        assert error.abs().max() < 4
        spread.append(found.std(0).mean().item())
    assert spread[0] == pytest.approx(3 * spread[1], rel=0.1)
    assert (second(m, 1.05 * cov) - second(m, cov)).abs().max() > 4 * spread[0] / 4000**0.5


def test_the_first_order_is_the_reward_of_the_mean():
    t = torch.full((3,), 2)
    found = PosteriorMean(plane(quadratic))(STATES, t, unconditional(3))
    torch.testing.assert_close(found, quadratic(posterior(STATES, 2)[0], None))


def test_it_is_exact_for_linear_rewards_of_gaussian_data():
    """Of a chain that reverses its noising exactly: data N(0, 1), and steps of the noise's variance."""
    grid = from_betas(torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=F64))
    denoiser = GaussianDenoiser(grid, torch.zeros(1), torch.eye(1))
    chain = GaussianPolicy(denoiser, grid, (1,), prediction_type="sample", noise=FixedLarge())
    objective = Objective(lambda x, c: x[:, 0], chain.double().requires_grad_(False), ALPHA)
    axis = exact_grid.Axis(-10, 10, 601)
    wanted, x = exact_grid.solve(objective, axis).values, axis.x[200:401, None]
    for t in (1, 2, 3, 4):
        time = torch.full((len(x),), t)
        found = PosteriorMean(objective, order=2)(x, time, unconditional(len(x)))
        torch.testing.assert_close(found, wanted[t, 200:401])
        first = PosteriorMean(objective)(x, time, unconditional(len(x)))
        assert (wanted[t, 200:401] - first).min() > 0.1


REWARDS = {
    "x": lambda x, c: x[:, 0],
    "sin x/2": lambda x, c: (x[:, 0] / 2).sin(),
    "well": lambda x, c: -(x[:, 0] ** 2),
}


@pytest.mark.parametrize("name", REWARDS)
def test_it_shrinks_the_gap_to_the_soft_value(name):
    """Of a mixture, whose posterior is no Gaussian, over the states that the reference visits."""
    torch.manual_seed(0)
    grid = gmm_schedule(20)
    chain = GaussianPolicy(gmm(grid), grid, (1,), prediction_type="sample", noise=FixedLarge())
    objective = Objective(REWARDS[name], chain.double().requires_grad_(False), 4.0)
    value = exact_grid.solve(objective, exact_grid.Axis(-6, 6, 401)).value
    seen = objective.sample(objective.reference, unconditional(200)).path.transitions()
    rows = seen.t <= 20
    x, t, cond = seen.x[rows], seen.t[rows], unconditional(int(rows.sum()))
    gaps = [
        (PosteriorMean(objective, order=order)(x, t, cond) - value(x, t, cond)).abs().mean()
        for order in (1, 2)
    ]
    assert gaps[1] < 0.5 * gaps[0]


@pytest.mark.parametrize("order", [1, 2])
def test_its_gradient_is_that_of_differences(order):
    grid = gmm_schedule(10)
    chain = GaussianPolicy(gmm(grid), grid, (1,), prediction_type="sample", noise=FixedLarge())
    objective = Objective(lambda x, c: torch.sin(3 * x[:, 0]), chain.double().requires_grad_(False), ALPHA)
    value, t = PosteriorMean(objective, order=order), torch.tensor([1, 5, 10, 0])
    x = torch.tensor([[0.3], [-1.0], [0.7], [0.2]], dtype=F64).requires_grad_()
    slope = torch.autograd.grad(value(x, t, unconditional(4)).sum(), x)[0][:, 0]
    up, down = (value(x.detach() + h, t, unconditional(4)) for h in (1e-5, -1e-5))
    torch.testing.assert_close(slope, (up - down) / 2e-5, rtol=1e-5, atol=1e-7)
    assert not up.requires_grad


def test_it_guides_a_chain():
    objective = plane(quadratic)
    guided = ValueGuided(objective.reference, objective, PosteriorMean(objective, order=2))
    x, t = STATES, torch.full((3,), 3)
    moved = (guided(x, t, unconditional(3)).mean - objective.reference(x, t, unconditional(3)).mean).norm(
        dim=1
    )
    assert moved.isfinite().all()
    assert moved.min() > 0.01


# tokens


class Skewed(nn.Module):
    """Fixed logits, whatever it sees."""

    def forward(self, x, t, cond):
        return torch.tensor([[0.0, 1.0], [0.5, 0.0], [0.0, 0.3]]).expand(len(x), -1, -1)


def tokens(reward=lambda x, c: (x[:, 0] * x[:, 1] * 2.0 - x[:, 2]).double()) -> Objective:
    return Objective(reward, MaskedPolicy(Skewed(), 2, 3), ALPHA)


def test_of_tokens_it_takes_the_likeliest():
    x, t = torch.tensor([[2, 2, 2], [2, 1, 2]]), torch.tensor([3, 2])
    found = PosteriorMean(tokens())(x, t, unconditional(2))
    assert found.tolist() == [-1.0, 1.0]  # (1, 0, 1) and (1, 1, 1)


def test_or_draws_of_them():
    """exp(v / alpha) is the mean over tokens that are drawn independently: what a chain of one step draws."""
    torch.manual_seed(0)
    x, t = torch.tensor([[2, 1, 2]]).expand(4000, -1), torch.full((4000,), 2)
    one, three = Skewed()(x[:1], t, None)[0].double().softmax(-1)[[0, 2], 1]
    wanted = (1 - one + one * math.exp(4)) * (1 - three + three * math.exp(-2))
    objective = tokens()
    for draws in (1, 4):
        found = (PosteriorMean(objective, draws=draws)(x, t, unconditional(4000)) / ALPHA).exp()
        assert abs(found.mean() - wanted) < 4 * found.std() / 4000**0.5 < 0.1 * wanted
    assert objective.reward.calls == 5 * 4000


# what it refuses


class Square(nn.Module):
    def forward(self, x, t, cond):
        return torch.zeros(len(x), 3, 4)


def refused():
    simplex = Objective(lambda x, c: x.sum((1, 2)), SimplexPolicy(Square(), 4, 3, time=schedule(2)), 1.0)
    return {
        "a chain that reverses a noising process": (
            Objective(lambda x, c: x[:, 0], tabular.random_chain(3, 2), 1.0),
            {},
        ),
        "tokens have no second order": (tokens(), {"order": 2}),
        "draws are of tokens": (plane(quadratic), {"draws": 3}),
        "probes must be >= 1, but got 0": (plane(quadratic), {"order": 2, "probes": 0}),
        "but 'mute' detaches its input": (plane(mute), {"order": 2}),
        "needs Gaussian noise, but got a Histogram": (simplex, {"order": 2}),
    }


def mute(x, c):
    return x[:, 0].detach()


@pytest.mark.parametrize("sentence", refused())
def test_it_says_what_it_cannot_do(sentence):
    objective, settings = refused()[sentence]
    with pytest.raises(ValueError, match=sentence):
        value = PosteriorMean(objective, **settings)
        x = objective.reference.initial(unconditional(2)).sample()
        value(x, torch.ones(2, dtype=torch.long), unconditional(2))


def test_where_there_is_no_signal_there_is_no_second_order():
    grid = NoiseSchedule(torch.arange(3), torch.tensor([0.9, 0.5, 0.0]), torch.tensor([0.1, 0.5, 1.0]))
    objective = Objective(
        lambda x, c: x[:, 0],
        GaussianPolicy(
            GaussianDenoiser(grid, torch.zeros(1), torch.eye(1)),
            grid,
            (1,),
            prediction_type="flow_prediction",
        ),
        1.0,
    )
    with pytest.raises(ValueError, match="where the signal is 0"):
        PosteriorMean(objective, order=2)(torch.ones(1, 1), torch.tensor([2]), unconditional(1))
