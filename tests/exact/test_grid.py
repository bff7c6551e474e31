"""Quadrature against published numbers, against closed forms, and against itself."""

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.exact import gaussian
from difftilt.exact import grid as exact
from difftilt.exact.toy import GaussianDenoiser, Residual, gmm, gmm_schedule
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import from_betas

REWARDS = {"x": lambda x, c: x[:, 0], "sin 3x": lambda x, c: torch.sin(3 * x[:, 0])}
# reward, alpha, E_pre r, E_{p_r} r, alpha log Z, KL, and the nats that a fixed variance loses
GOLDEN = [
    ("x", 0.25, -0.5000, 2.0677, 1.3521, 2.8624, None),
    ("x", 0.5, -0.5000, 1.5188, 0.9080, 1.2217, None),
    ("x", 1.0, -0.5000, 1.1074, 0.4735, 0.6339, 0.019),
    ("sin 3x", 0.25, 0.0723, 0.8674, 0.6339, 0.9340, None),
    ("sin 3x", 0.5, 0.0723, 0.7171, 0.4581, 0.5179, 0.057),
    ("sin 3x", 1.0, 0.0723, 0.4922, 0.2970, 0.1951, None),
]


def denoising(network, grid, tune_std=False):
    return GaussianPolicy(
        network, grid, (1,), prediction_type="sample", noise=FixedLarge(), tune_std=tune_std
    ).double()


@pytest.fixture(scope="module")
def reference():
    return denoising(gmm(gmm_schedule()), gmm_schedule()).requires_grad_(False)


@pytest.mark.parametrize(("name", "alpha", "before", "reward", "optimum", "kl", "lost"), GOLDEN)
def test_reproduces_the_published_table(reference, name, alpha, before, reward, optimum, kl, lost):
    objective = Objective(REWARDS[name], reference, alpha)
    axis = exact.Axis(-6, 6, 301)
    solved = exact.solve(objective, axis)
    pretrained = exact.evaluate(objective, reference, axis)
    found = [pretrained.reward, solved.reward, solved.optimum, solved.kl]
    assert [value.item() for value in found] == pytest.approx([before, reward, optimum, kl], abs=1e-4)
    assert solved.frozen.item() == pytest.approx(solved.optimum.item(), abs=2e-5)
    if lost:
        fixed, _ = exact.solve_fixed_std(objective, axis)
        assert (solved.optimum - fixed).item() / alpha == pytest.approx(lost, abs=1e-3)


def test_does_not_depend_on_the_spacing(reference):
    objective = Objective(REWARDS["sin 3x"], reference, 0.5)
    coarse, fine = (exact.solve(objective, exact.Axis(-6, 6, n)).optimum.item() for n in (301, 451))
    assert coarse == pytest.approx(fine, abs=1e-9)


@pytest.fixture(scope="module")
def linear():
    """A linear-Gaussian chain with so few steps that the distribution of x_T matters."""
    grid = from_betas(torch.tensor([0.2, 0.3, 0.3, 0.2], dtype=torch.float64))
    denoiser = GaussianDenoiser(grid, torch.tensor([0.7]), torch.tensor([[0.5]]))
    return denoising(denoiser, grid, tune_std=True)


@pytest.mark.parametrize("reward", ["slope", "bowl", "saddle"])
def test_agrees_with_riccati(linear, reward):
    one = torch.ones(1, dtype=torch.float64)
    quadratic = {
        "slope": gaussian.linear(0.8 * one),
        "bowl": gaussian.bowl(2 * one, 1.5 * one.diag()),
        "saddle": gaussian.bowl(one, -0.3 * one.diag()),
    }[reward]
    objective, chain = Objective(quadratic, linear, 0.5), gaussian.affine(linear)
    axis = exact.Axis(-12, 12, 801)
    solved, closed = exact.solve(objective, axis), gaussian.solve(chain, quadratic, 0.5)
    assert solved.optimum.item() == pytest.approx(closed.optimum.item(), abs=1e-9)
    assert solved.frozen.item() == pytest.approx(closed.frozen.item(), abs=1e-9)
    assert solved.optimum - solved.frozen > 1e-4
    x = axis.x[200:600]
    for t, value in enumerate(closed.values):
        torch.testing.assert_close(solved.values[t, 200:600], value(x[:, None]), atol=1e-7, rtol=0)

    fixed, means = exact.solve_fixed_std(objective, axis)
    best = gaussian.solve(chain, quadratic, 0.5, fixed_cov=True)
    assert fixed.item() == pytest.approx(best.frozen.item(), abs=1e-9)
    expected = best.policy.weight[:, 0] * x + best.policy.bias
    torch.testing.assert_close(means[:, 200:600], expected, atol=1e-7, rtol=0)


def test_evaluates_any_policy_as_the_closed_form_does(linear):
    torch.manual_seed(0)
    reward = gaussian.bowl(*(2 * torch.ones(n, dtype=torch.float64) for n in [(1,), (1, 1)]))
    chain = gaussian.affine(linear)
    start = torch.tensor([0.4], dtype=torch.float64), torch.tensor([[0.6]], dtype=torch.float64)
    moved = gaussian.AffineChain(*start, chain.weight * 1.2, chain.bias + 0.1, chain.noise * 1.3)
    policy = gaussian.AffinePolicy(moved)
    found = exact.evaluate(Objective(reward, linear, 0.7), policy, exact.Axis(-12, 12, 801))
    closed = gaussian.evaluate(moved, chain, reward, 0.7)
    for part in ("reward", "kl", "objective"):
        assert getattr(found, part).item() == pytest.approx(getattr(closed, part).item(), abs=1e-9)


def test_a_trained_network_s_exact_numbers_lie_within_the_error_of_sampled_ones(reference):
    torch.manual_seed(0)
    policy = denoising(Residual(gmm(gmm_schedule()), gmm_schedule(), 1), gmm_schedule(), tune_std=True)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    objective = Objective(REWARDS["sin 3x"], reference, 0.5)
    with torch.no_grad():
        exactly = exact.evaluate(objective, policy, exact.Axis(count=401))
    sampled = objective.sample(policy, unconditional(4000)).stats()
    assert exactly.kl > 0.01
    for part in ("reward", "objective"):
        assert abs(getattr(exactly, part) - sampled[part]) < 4 * sampled[f"{part}_se"]
    assert abs(exactly.kl - sampled["kl_nats"]) < 4 * sampled["kl_nats_se"]


def test_the_gap_identity_holds_on_the_line(reference):
    """alpha log Z - J(p) = alpha KL(p || p*), and no policy that keeps the variances beats the best one."""
    objective = Objective(REWARDS["x"], reference, 1.0)
    axis = exact.Axis(-6, 6, 301)
    fixed, _ = exact.solve_fixed_std(objective, axis)
    assert exact.evaluate(objective, reference, axis).objective < fixed < exact.solve(objective, axis).optimum


def test_the_soft_value_is_read_between_the_points(reference):
    solved = exact.solve(Objective(REWARDS["sin 3x"], reference, 1.0), exact.Axis(-6, 6, 601))
    x = torch.tensor([[-1.03], [0.5], [1.207]], dtype=torch.float64)
    value = solved.value(x, torch.zeros(3, dtype=torch.long), unconditional(3))
    torch.testing.assert_close(value, torch.sin(3 * x[:, 0]), atol=5e-4, rtol=0)


def test_refuses_what_it_cannot_resolve(reference):
    objective = Objective(REWARDS["x"], reference, 1.0)
    with pytest.raises(ValueError, match="more points"):
        exact.evaluate(objective, reference, exact.Axis(count=101))
    with pytest.raises(ValueError, match="widen the axis"):
        exact.evaluate(objective, reference, exact.Axis(-1.5, 8, 601))
