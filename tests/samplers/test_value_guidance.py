"""Guided chains: the published table, the case where guidance is exact, and what composes with it."""

from typing import Any

import pytest
import torch
from paths import path_kl

from difftilt.conditions import unconditional
from difftilt.exact import grid
from difftilt.exact.toy import GaussianDenoiser, gmm, gmm_grid
from difftilt.objective import Objective
from difftilt.policy import rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import from_betas
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_guidance import ValueGuidance, ValueGuided
from difftilt.values.tweedie import PosteriorMean

AXIS = grid.Axis(-8, 8, 401)
FINE = grid.Axis(-6, 6, 601)  # the slope of a tabulated value is known to the first order in the spacing
REWARDS = {"x": lambda x, c: x[:, 0], "sin 3x": lambda x, c: torch.sin(3 * x[:, 0])}
# reward, alpha; E r, total variation to p_r, path KL of the chain twisted by r(E[x_0 | x_t]); the same of
# the chain guided by the gradient of the exact value
GOLDEN = [
    ("x", 0.25, (2.277, 0.161, 5.375), (2.081, 0.010, 2.937)),
    ("x", 0.5, (1.686, 0.125, 2.116), (1.532, 0.011, 1.284)),
    ("x", 1.0, (1.215, 0.068, 0.839), (1.113, 0.009, 0.668)),
    ("sin 3x", 0.25, (0.923, 0.168, 11.46), (0.882, 0.052, 1.210)),
    ("sin 3x", 0.5, (0.843, 0.168, 5.41), (0.727, 0.030, 0.614)),
    ("sin 3x", 1.0, (0.633, 0.116, 2.02), (0.495, 0.014, 0.222)),
]


def chain(network, levels, dimension=1):
    settings: Any = {"prediction_type": "sample", "variance_type": "fixed_large"}
    return GaussianPolicy(network, levels, (dimension,), **settings).double().requires_grad_(False)


@pytest.fixture(scope="module")
def reference():
    return chain(gmm(gmm_grid()), gmm_grid())


def row(found, solved):
    return found.reward.item(), (found.law - solved.law).abs().sum().item() / 2, found.kl.item()


@pytest.mark.parametrize(("name", "alpha", "twisted", "guided"), GOLDEN)
def test_reproduces_the_published_table(reference, name, alpha, twisted, guided):
    objective = Objective(REWARDS[name], reference, alpha)
    solved = grid.solve(objective, AXIS)
    found = row(grid.twist(objective, PosteriorMean(objective), AXIS), solved)
    assert found == pytest.approx(twisted, rel=0.01, abs=8e-4)  # one per cent, and what was rounded off
    solved = grid.solve(objective, FINE)
    found = row(grid.evaluate(objective, ValueGuided(reference, objective, solved.value), FINE), solved)
    assert found == pytest.approx(guided, rel=0.01, abs=8e-4)


def test_twisting_by_the_exact_value_is_the_optimum(reference):
    objective = Objective(REWARDS["sin 3x"], reference, 0.25)
    solved = grid.solve(objective, AXIS)
    found = grid.twist(objective, solved.value, AXIS)
    assert found.objective.item() == pytest.approx(solved.optimum.item(), abs=1e-9)
    half = grid.twist(objective, lambda x, t, c: solved.value(x, t, c) / 2, AXIS)
    assert half.objective.item() < solved.optimum.item() - 0.05


@pytest.mark.parametrize("at", ["mean", "state"])
def test_is_exact_where_the_value_is_linear(at):
    """Of Gaussian data and a linear reward v_t = a E[x_0 | x_t] + const: x_T included, no nat is lost."""
    torch.manual_seed(0)
    levels = from_betas(torch.full((12,), 0.4, dtype=torch.float64))
    reference = chain(GaussianDenoiser(levels, torch.tensor([0.5]), torch.tensor([[0.6]])), levels)
    objective = Objective(REWARDS["x"], reference, 0.5)
    solved = grid.solve(objective, AXIS)
    value = PosteriorMean(objective)
    guided = ValueGuided(reference, objective, value, at=at, start=True)
    gap = (solved.optimum - grid.evaluate(objective, guided, AXIS).objective).item() / 0.5
    if at == "mean":
        assert gap < 1e-9
    else:  # v_t at x_t has the slope of v_{t-1} at the mean: E[x_0 | x_t] = E[E[x_0 | x_{t-1}] | x_t]
        assert 1e-4 < gap < 0.2  # but times the slope of the mean, which is below 1


def test_reports_the_path_kl_and_log_z(reference):
    objective = Objective(REWARDS["x"], reference, 1.0)
    solved = grid.solve(objective, AXIS)
    torch.manual_seed(0)
    drawn = ValueGuidance().draw(objective, solved.value, unconditional(4000))
    exact = grid.evaluate(objective, ValueGuided(reference, objective, solved.value), AXIS)
    summary = drawn.summary()
    assert not summary["kl_is_upper_bound"]
    for name, expected in (("reward", exact.reward), ("kl_nats", exact.kl), ("objective", exact.objective)):
        assert abs(summary[name] - expected.item()) < 4 * summary[f"{name}_se"] < 0.1
    assert abs(summary["log_z"] - solved.optimum.item()) < 4 * summary["log_z_se"] < 0.05
    assert summary["reward_calls"] == 8000  # once to guide the last step, once for the sample
    assert summary["network_calls"] == {
        "forward": 4000 * 50,
        "backward": 0,
    }  # the KL costs no pass of its own


def test_a_guided_chain_is_a_policy_that_can_be_scored_and_composed(reference):
    objective = Objective(REWARDS["x"], reference, 1.0)
    solved = grid.solve(objective, AXIS)
    guided = ValueGuidance().guide(reference, objective, solved.value)
    torch.manual_seed(0)
    path = rollout(guided, unconditional(8))
    assert path_kl(guided, reference, path).sum(0).min() > 0
    drawn = SMC(particles=4).draw(objective, solved.value, unconditional(500), guided)
    ratio = (drawn.log_z - solved.optimum).exp()
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 500**0.5
    plain = SMC(particles=4).draw(objective, solved.value, unconditional(500))
    assert ratio.std() < 0.3 * (plain.log_z - solved.optimum).exp().std()  # little is left to correct


def test_no_reward_means_no_guidance_and_clipping_bounds_it(reference):
    objective = Objective(REWARDS["x"], reference, 1.0)
    x, t, cond = torch.randn(5, 1, dtype=torch.float64), torch.full((5,), 30), unconditional(5)
    flat = ValueGuided(reference, objective, lambda x, t, c: 0 * x[:, 0])(x, t, cond)
    assert torch.equal(flat.mean, reference(x, t, cond).mean)
    steep = ValueGuided(reference, objective, lambda x, t, c: 100 * x[:, 0], max_norm=2.0)(x, t, cond)
    torch.testing.assert_close(steep.mean - flat.mean, 2 * flat.std**2)


def test_says_what_it_needs(reference):
    objective = Objective(lambda x, c: x[:, 0].detach(), reference, 1.0)
    with pytest.raises(ValueError, match="detaches its input"):
        ValueGuidance().draw(objective, PosteriorMean(objective), unconditional(4))
    from difftilt.exact.tabular import random_chain

    tokens = Objective(lambda x, c: x[:, 0].double(), random_chain(4, 3), 1.0)
    with pytest.raises(ValueError, match="needs Gaussian steps, but Categorical came"):
        ValueGuidance().draw(tokens, lambda x, t, c: x[:, 0].double(), unconditional(4))
    with pytest.raises(ValueError, match="reverses a noising process"):
        PosteriorMean(tokens)
