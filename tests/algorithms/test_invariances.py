"""What must not change the result: the unit of the reward with that of alpha, and the reward's origin."""

import pytest
import torch
from problems import finite, reversal
from test_contracts import found, made

from difftilt.conditions import unconditional
from difftilt.exact import grid, tabular
from difftilt.exact.toy import GaussianDenoiser
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import from_betas
from difftilt.training.fit import fit
from difftilt.training.settings import Training

TOLERANCE = 1e-5  # relative; the 1e-6 that keeps spreads above zero is seen, and a critic's float32


def trained(kind, unit=1.0, shift=0.0, alpha=0.5, rounds=3):
    """The policy's weights after a few rounds.

    The gradient is not clipped: where a loss is in units of the reward, as Backprop's and AdjointMatching's
    are, its clip is too, and by design that length does not follow the unit.
    """
    problem = reversal()
    reward = problem.objective.reward.reward
    objective = Objective(
        lambda x, c: unit * (torch.as_tensor(reward(x, c)) + shift), problem.objective.reference, unit * alpha
    )
    torch.manual_seed(0)
    cond = unconditional(64)
    algorithm = made(kind, problem.start, cond)
    tuned = [p for p in [*problem.start.parameters(), *algorithm.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(tuned, 0.03, eps=1e-14)
    list(fit(problem.start, objective, algorithm, [cond] * rounds, optimizer, Training(max_norm=1e9)))
    return torch.cat([p.detach().flatten() for p in problem.start.parameters() if p.requires_grad])


def same(a, b):
    return bool((a - b).norm() < TOLERANCE * a.norm())


@pytest.mark.parametrize("kind", found(), ids=lambda kind: kind.__name__)
def test_neither_the_unit_nor_the_origin_of_the_reward_matters(kind):
    usual = trained(kind)
    assert same(usual, trained(kind, unit=4.0))
    assert same(usual, trained(kind, shift=3.0))


@pytest.mark.parametrize("kind", found(), ids=lambda kind: kind.__name__)
def test_the_invariance_test_notices_an_alpha_that_stays_behind(kind):
    assert not same(trained(kind), trained(kind, unit=4.0, alpha=0.125))
    assert not same(trained(kind), trained(kind, alpha=0.51))


@pytest.mark.parametrize("kind", found(), ids=lambda kind: kind.__name__)
def test_a_large_alpha_leaves_the_reference(kind):
    kl = {}
    for alpha in (0.5, 1e6):
        problem = reversal()
        objective = Objective(problem.objective.reward, problem.objective.reference, alpha)
        torch.manual_seed(0)
        cond = unconditional(256)
        algorithm = made(kind, problem.start, cond)
        tuned = [p for p in [*problem.start.parameters(), *algorithm.parameters()] if p.requires_grad]
        optimizer = torch.optim.Adam(tuned, 0.01)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, 10)
        for number in range(10):
            list(fit(problem.start, objective, algorithm, [cond], optimizer, start=number))
            schedule.step()
        kl[alpha] = objective.sample(problem.start, unconditional(64)).kl.sum(0).mean().item()
    assert kl[1e6] < 0.02 * kl[0.5]


# the exact optima: E r and KL rise with 1 / alpha by the variance of the reward under p_r


def tables(alpha):
    """E r, KL and Var r of the tilted distribution of a finite chain."""
    problem = finite()
    objective = Objective(problem.objective.reward, problem.objective.reference, alpha)
    found = tabular.evaluate(objective, tabular.solve(objective).policy)
    score = torch.as_tensor(objective.reward(torch.arange(3)[:, None], unconditional(3)))
    return found.reward.item(), found.kl.item(), (found.laws[0] @ (score - found.reward) ** 2).item()


def line(alpha):
    """The same on a grid of points."""
    levels = from_betas(torch.tensor([0.2, 0.3, 0.3, 0.2], dtype=torch.float64))
    network = GaussianDenoiser(levels, torch.zeros(1), torch.eye(1))
    chain = GaussianPolicy(network, levels, (1,), prediction_type="sample", noise=FixedLarge())
    objective = Objective(lambda x, c: torch.sin(3 * x[:, 0]), chain.double(), alpha)
    axis = grid.Axis(-8, 8, 401)
    found = grid.solve(objective, axis)
    variance = found.law @ (torch.sin(3 * axis.x) - found.reward) ** 2
    return found.reward.item(), found.kl.item(), variance.item()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("solved", [tables, line], ids=lambda solved: solved.__name__)
def test_reward_and_kl_rise_with_the_inverse_of_alpha_by_the_variance(solved, alpha, step=1e-4):
    below, above = (solved(1 / (1 / alpha + sign * step)) for sign in (-1, 1))
    slope_reward, slope_kl = (
        (high - low) / (2 * step) for low, high in zip(below[:2], above[:2], strict=True)
    )
    variance = solved(alpha)[2]
    assert variance > 1e-3
    assert slope_reward == pytest.approx(variance, rel=1e-4)
    assert slope_kl == pytest.approx(variance / alpha, rel=1e-4)
