"""A frozen distribution of x_T: what it costs, which chains it costs nothing, and that tuning it removes the
cost.

The 6-state sticky chain stands in test_tabular.py.
"""

import dataclasses

import pytest
import torch

from difftilt.exact import gaussian as exact
from difftilt.exact.toy import AffineResidual, GaussianDenoiser, Velocity
from difftilt.guidance.start import TunedStart
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import DDIM, MEMORYLESS, Euler, FlowSDE
from difftilt.processes.schedule import NoiseSchedule, linear, shifted_flow

STEPS, ALPHA = 8, 0.5
F64 = torch.float64
REWARD = exact.bowl(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))


def told_the_index(grid):
    return dataclasses.replace(grid, time=torch.arange(STEPS + 1))


def data(grid: NoiseSchedule):
    return GaussianDenoiser(grid, torch.tensor([1.0, -0.5]), 0.5 * torch.eye(2))


def ddim(eta, tuned=False):
    grid = told_the_index(linear(999).take(torch.linspace(49, 999, STEPS + 1).round().long()))
    network = AffineResidual(data(grid), grid.sigma**2, 2, terms=STEPS + 1) if tuned else data(grid)
    policy = GaussianPolicy(network, grid, (2,), noise=DDIM(eta), prediction_type="sample", tune_std=tuned)
    return policy.double()


def flow(noise):
    grid = told_the_index(shifted_flow(STEPS, sigma_min=0.05))
    network = Velocity(data(grid), grid)
    return GaussianPolicy(network, grid, (2,), noise=noise, prediction_type="flow_prediction").double()


def cost(policy):
    """Nats by which a frozen start stays below alpha log Z."""
    solved = exact.solve(exact.affine(policy), REWARD, ALPHA)
    return ((solved.optimum - solved.frozen) / ALPHA).item()


def test_the_cost_falls_with_the_noise_to_nothing_at_ddpm():
    costs = [cost(ddim(eta)) for eta in (0.1, 0.3, 0.5, 0.7, 1.0)]
    assert costs == sorted(costs, reverse=True)
    assert costs[1] > 0.25
    assert 0 <= costs[-1] < 1e-4


@pytest.mark.parametrize("noise_level", [0.1, 0.7, MEMORYLESS])
def test_exponential_flow_steps_from_pure_noise_cost_nothing_and_euler_steps_do(noise_level):
    assert abs(cost(flow(FlowSDE(noise_level)))) < 1e-12
    if noise_level < MEMORYLESS:
        assert cost(flow(Euler(noise_level))) > 0.01


def test_the_law_of_the_best_policy_with_a_frozen_start():
    """nu(x_T) p_pre(x_0 | x_T) exp((r(x_0) - v_T(x_T)) / alpha), averaged over x_T, by quadrature."""
    one = torch.ones(1, 1, dtype=F64)
    chain = exact.AffineChain(one[0] / 2, one, 0.8 * one[None], one / 5, 0.3 * one[None])
    reward = exact.bowl(one[0], 2 * one)
    solved = exact.solve(chain, reward, ALPHA)
    x_0 = torch.linspace(-9, 9, 1801, dtype=F64)
    x = x_0[:, None]
    start = (-((x_0 - 0.5) ** 2) / 2).softmax(0)
    step = (-((x_0 - 0.8 * x - 0.2) ** 2) / 0.6).log_softmax(1)
    soft = (step + reward(x) / ALPHA).logsumexp(1)
    law = start @ (step + reward(x) / ALPHA - soft[:, None]).exp()
    found = exact.evaluate(solved.frozen_policy, chain, reward, ALPHA)
    mean = law @ x_0
    assert found.mean.item() == pytest.approx(mean.item(), abs=1e-8)
    assert found.cov.item() == pytest.approx((law @ (x_0 - mean) ** 2).item(), abs=1e-8)
    assert solved.frozen.item() == pytest.approx(ALPHA * (start @ soft).item(), abs=1e-8)


@pytest.mark.parametrize("tuned", [False, True], ids=["frozen", "tuned"])
def test_a_tuned_start_closes_the_gap_and_a_frozen_one_cannot(tuned):
    """Ascends the exact J of an 8-step chain that remembers x_T, so that nothing but the family is tested."""
    reference = exact.affine(ddim(0.3))
    best = exact.solve(reference, REWARD, ALPHA)
    policy = TunedStart(ddim(0.3, tuned=True)) if tuned else ddim(0.3, tuned=True)
    weights = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(weights, max_iter=80, line_search_fn="strong_wolfe")

    def gap():
        found = exact.evaluate(exact.affine(policy), reference, REWARD, ALPHA)
        return (best.optimum - found.objective) / ALPHA

    def closure():
        optimizer.zero_grad()
        loss = gap()
        loss.backward()
        return loss

    optimizer.step(closure)
    bound = (best.optimum - best.frozen).item() / ALPHA
    assert bound > 0.25
    least = 0 if tuned else bound
    assert least - 1e-9 < gap().item() < least + 5e-3
