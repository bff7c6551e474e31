"""Riccati recursions against textbook closed forms, brute force and each other."""

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.exact import gaussian as exact
from difftilt.exact.toy import GaussianDenoiser, gmm, gmm_schedule
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import from_betas

ALPHA = 0.7


def positive(dimension):
    root = torch.randn(dimension, dimension, dtype=torch.float64)
    return root @ root.T / dimension + 0.2 * torch.eye(dimension, dtype=torch.float64)


def random_chain(dimension=3, steps=4, seed=0):
    torch.manual_seed(seed)
    noise = torch.stack([positive(dimension) for _ in range(steps)])
    mean, bias, weight = torch.randn(steps * (dimension + 1) + 1, dimension, dtype=torch.float64).split(
        [1, steps, steps * dimension]
    )
    weight = weight.view(steps, dimension, dimension) / 2
    return exact.AffineChain(mean[0], positive(dimension), weight, bias, noise)


def random_reward(dimension=3):
    return exact.Quadratic(
        torch.tensor(0.3, dtype=torch.float64),
        torch.randn(dimension, dtype=torch.float64),
        positive(dimension) - 0.3 * torch.eye(dimension, dtype=torch.float64),
    )


def pretrained_law(chain):
    zero = torch.zeros_like(chain.mean)
    at = exact.evaluate(chain, chain, exact.linear(zero), 1.0)
    return at.mean, at.cov


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_linear_reward_shifts_the_law_by_its_covariance(steps):
    """N(m, S) tilted by a'x / alpha is N(m + S a / alpha, S)."""
    chain = random_chain(steps=steps)
    m, S = pretrained_law(chain)
    a = torch.randn(3, dtype=torch.float64)
    solved = exact.solve(chain, exact.linear(a), ALPHA)
    torch.testing.assert_close(solved.optimum, a @ m + a @ S @ a / (2 * ALPHA))
    found = exact.evaluate(solved.policy, chain, exact.linear(a), ALPHA)
    torch.testing.assert_close(found.mean, m + S @ a / ALPHA)
    torch.testing.assert_close(found.cov, S)
    torch.testing.assert_close(found.kl, a @ S @ a / (2 * ALPHA**2))


def test_a_bowl_multiplies_two_gaussians():
    """Tilting by -(x - c)'P(x - c) / (2 alpha) adds the precision P / alpha."""
    chain = random_chain()
    (m, S), P, c = pretrained_law(chain), positive(3), torch.randn(3, dtype=torch.float64)
    reward = exact.bowl(c, P)
    solved = exact.solve(chain, reward, ALPHA)
    found = exact.evaluate(solved.policy, chain, reward, ALPHA)
    cov = (S.inverse() + P / ALPHA).inverse()
    torch.testing.assert_close(found.cov, cov)
    torch.testing.assert_close(found.mean, cov @ (S.inverse() @ m + P @ c / ALPHA))
    torch.testing.assert_close(found.objective, solved.optimum)


def test_each_optimum_is_reached_by_its_policy_and_by_no_other():
    chain = random_chain()
    reward = random_reward()

    def objective(policy):
        return exact.evaluate(policy, chain, reward, ALPHA).objective

    free, fixed = (exact.solve(chain, reward, ALPHA, fixed_cov=keep) for keep in (False, True))
    for solved in (free, fixed):
        torch.testing.assert_close(objective(solved.policy), solved.optimum)
        torch.testing.assert_close(objective(solved.frozen_policy), solved.frozen)
        for name in ("mean", "weight", "bias"):
            table = getattr(solved.policy, name).clone().requires_grad_()
            changed = exact.AffineChain(**{**vars(solved.policy), name: table})
            (gradient,) = torch.autograd.grad(objective(changed), table)
            assert gradient.abs().max() < 1e-10
    assert objective(chain) < fixed.frozen < fixed.optimum < free.optimum
    assert fixed.frozen < free.frozen < free.optimum
    torch.testing.assert_close(fixed.policy.noise, chain.noise)
    torch.testing.assert_close(fixed.policy.weight, free.policy.weight)


def test_values_agree_with_sampled_exponentials():
    chain, alpha = random_chain(dimension=2, steps=3), 5.0
    reward, x = random_reward(2), torch.tensor([0.5, -1.0], dtype=torch.float64)
    y = x.expand(100_000, -1)
    for t in range(2, -1, -1):
        noise = torch.randn_like(y) @ torch.linalg.cholesky(chain.noise[t]).T
        y = y @ chain.weight[t].T + chain.bias[t] + noise
    value = exact.solve(chain, reward, alpha).values[3](x[None])[0]
    weight = (reward(y) / alpha).exp()
    expected = weight.mean()
    error = weight.std() / len(weight) ** 0.5
    assert abs((value / alpha).exp() - expected) < 4 * error
    assert error / expected < 0.01


def test_alpha_to_infinity_is_the_reference():
    chain, reward = random_chain(), random_reward()
    far = exact.solve(chain, reward, 1e7)
    mean, cov = pretrained_law(chain)
    assert far.optimum.item() == pytest.approx(reward.mean(mean, cov).item(), abs=1e-5)
    torch.testing.assert_close(far.policy.noise, chain.noise, atol=1e-5, rtol=0)


def test_a_reward_too_convex_for_alpha_is_refused():
    chain = random_chain()
    reward = exact.bowl(torch.zeros(3, dtype=torch.float64), -10 * torch.eye(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="too small"):
        exact.solve(chain, reward, ALPHA)


def test_reads_the_affine_form_of_a_denoising_chain():
    """A perfect denoiser of N(m, S) on a fine DDPM grid makes N(m, S)."""
    torch.manual_seed(0)
    grid = from_betas(torch.linspace(0.001, 0.03, 400, dtype=torch.float64))
    mean, cov = torch.randn(4, dtype=torch.float64), positive(4)
    network = GaussianDenoiser(grid, mean, cov)
    policy = GaussianPolicy(network, grid, (4,), prediction_type="sample", noise=FixedLarge()).double()
    made = pretrained_law(exact.affine(policy))
    torch.testing.assert_close(made[0], mean, atol=0.02, rtol=0)
    torch.testing.assert_close(made[1], cov, atol=0.03, rtol=0)


def test_affine_and_affine_policy_undo_each_other():
    chain = random_chain()
    diagonal = exact.AffineChain(
        chain.mean, chain.cov.diagonal().diag(), chain.weight, chain.bias,
        chain.noise.diagonal(dim1=1, dim2=2).diag_embed(),
    )  # fmt: skip
    policy = exact.AffinePolicy(diagonal, tune_std=True, tune_initial=True)
    again = exact.affine(policy)
    for name, value in vars(diagonal).items():
        torch.testing.assert_close(getattr(again, name), value)
    with torch.no_grad():
        policy.get_parameter("network.bias").add_(1)
    assert not torch.equal(exact.affine(policy).bias, diagonal.bias)  # the policy has tables of its own
    policy = exact.AffinePolicy(diagonal)
    reward = random_reward()
    seen = Objective(reward, policy, ALPHA).sample(policy, unconditional(20_000)).stats()
    exactly = exact.evaluate(diagonal, diagonal, reward, ALPHA)
    assert abs(seen["reward"] - exactly.reward) < 4 * seen["reward_se"]
    with pytest.raises(ValueError, match="diagonal"):
        exact.AffinePolicy(chain)


def test_a_network_that_is_not_affine_is_refused():
    policy = GaussianPolicy(
        gmm(gmm_schedule()), gmm_schedule(), (1,), prediction_type="sample", noise=FixedLarge()
    ).double()
    with pytest.raises(ValueError, match="not affine"):
        exact.affine(policy)
