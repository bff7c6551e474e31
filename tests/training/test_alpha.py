"""What alpha means, from rewards of the pretrained model alone."""

import math
import re

import pytest
import torch

from difftilt.training.alpha import expected_tilt, meaning_of_alpha, starting_alpha


def normal(count: int, seed: int) -> torch.Tensor:
    """Rewards N(3, 2^2), of which the optimum at alpha lies 2 / alpha^2 nats away."""
    return 3 + 2 * torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kl", [0.1, 0.5, 1.0])
def test_the_kl_of_a_normal_reward_lies_within_its_error(kl):
    """Over 200 sets of samples the mean is right, and the error is the spread."""
    alpha = (2 / kl) ** 0.5
    tilts = [expected_tilt(normal(1000, seed), alpha) for seed in range(200)]
    found = torch.tensor([tilt.kl_nats for tilt in tilts], dtype=torch.float64)
    stated = torch.tensor([tilt.kl_nats_se for tilt in tilts], dtype=torch.float64)
    assert found.mean().item() == pytest.approx(kl, rel=0.05)
    assert stated.mean().item() == pytest.approx(found.std().item(), rel=0.25)
    size = torch.tensor([tilt.effective_sample_size for tilt in tilts]).mean().item()
    assert size == pytest.approx(1000 * math.exp(-2 * kl), rel=0.5)


def test_the_jackknife_leaves_out_one_sample_after_the_other():
    rewards = normal(12, 0)
    rewards[5] = 60.0  # outweighs the others by e^30, so that its absence cannot be had by a difference
    without = [expected_tilt(torch.cat([rewards[:i], rewards[i + 1 :]]), 2.0).kl_nats for i in range(12)]
    x = torch.tensor(without, dtype=torch.float64)
    by_hand = (11 / 12 * (x - x.mean()).square().sum()).sqrt().item()
    assert expected_tilt(rewards, 2.0).kl_nats_se == pytest.approx(by_hand, rel=1e-9)


def test_two_rewards_by_hand():
    """A share p of ones: the optimum has q = p e^(1/alpha) / (p e^(1/alpha) + 1 - p) of them."""
    rewards, alpha, p = torch.tensor([1.0] * 20 + [0.0] * 80), 0.4, 0.2
    q = p * math.exp(1 / alpha) / (p * math.exp(1 / alpha) + 1 - p)
    kl = q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))
    assert expected_tilt(rewards, alpha).kl_nats == pytest.approx(kl, rel=1e-9)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-4, 5.0), (1e6, -1e6)])
def test_alpha_has_the_units_of_the_reward(scale, shift):
    rewards = normal(500, 1)
    found, scaled = starting_alpha(rewards, 0.7), starting_alpha(scale * rewards + shift, 0.7)
    assert found.kl_nats == pytest.approx(0.7, rel=1e-3)
    assert scaled.alpha == pytest.approx(scale * found.alpha, rel=1e-4)


@pytest.mark.parametrize("target", [0.01, 0.3, 1.0, 2.0])
def test_a_start_is_the_alpha_of_the_target(target):
    assert starting_alpha(normal(20_000, 2), target).alpha == pytest.approx((2 / target) ** 0.5, rel=0.15)


def test_what_samples_cannot_tell_starts_on_the_safe_side():
    """From 100 samples no alpha for 6 nats can be had: the start leads to less."""
    rewards = normal(100, 3)
    start = starting_alpha(rewards, 6.0)
    assert start.effective_sample_size == pytest.approx(10, rel=1e-3)
    assert start.alpha > (2 / 6.0) ** 0.5 and start.kl_nats < 6


def test_a_reward_of_two_values_cannot_lead_farther_than_its_best_samples():
    rewards = torch.tensor([1.0] * 100 + [0.0] * 900)
    start = starting_alpha(rewards, 6.0)
    assert start.kl_nats == pytest.approx(0.9 * math.log(10), rel=1e-3)


def test_equal_rewards_are_refused_for_a_target():
    with pytest.raises(ValueError, match=r"must differ .* but got 5 times 2"):
        starting_alpha(torch.full((5,), 2.0), 1.0)


def test_rewards_that_are_missing_are_left_out():
    rewards = normal(50, 4)
    holes = torch.cat([rewards, torch.tensor([math.nan, math.inf])])
    assert expected_tilt(holes, 1.0) == expected_tilt(rewards, 1.0)
    with pytest.raises(ValueError, match=r"at least 3 finite rewards are needed .* but got 2"):
        expected_tilt(torch.tensor([1.0, 2.0, math.nan]), 1.0)


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        (2.0, r"^alpha 2 asks for a policy 0\.\d+ ± 0\.\d+ nats .*, as 512 samples tell$"),
        (200.0, r"hardly differs from the pretrained model; lower alpha"),
        (0.02, r"1\.\d of 512 samples decide, too few .* raise alpha"),
    ],
)
def test_the_meaning_of_alpha_is_said_with_a_warning_where_it_does_not_fit(alpha, said):
    assert re.search(said, meaning_of_alpha(normal(512, 5), alpha)), meaning_of_alpha(normal(512, 5), alpha)
