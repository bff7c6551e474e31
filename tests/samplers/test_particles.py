"""Weights and resampling of populations."""

import math

import pytest
import torch

from difftilt.samplers.particles import alive, effective_share, log_mean_exp, pick, resampled, systematic

LOG_W = torch.tensor([[0.0, 1.0, 2.0, -torch.inf], [-900.0, -900.0, -901.0, -900.0]], dtype=torch.float64)


def test_means_and_shares_neither_overflow_nor_forget():
    huge = LOG_W + torch.tensor([[5000.0], [0.0]])
    expected = [5000 + math.log((1 + math.e + math.e**2) / 4), -900 + math.log((3 + 1 / math.e) / 4)]
    assert log_mean_exp(huge).tolist() == pytest.approx(expected)
    w = torch.tensor([1, math.e, math.e**2, 0])
    assert effective_share(huge)[0].item() == pytest.approx((w.sum() ** 2 / (4 * (w**2).sum())).item())
    assert effective_share(torch.zeros(1, 7, dtype=torch.float64)).item() == pytest.approx(1)
    assert effective_share(torch.full((1, 3), -torch.inf)).item() == 0


def test_the_effective_share_is_that_of_equal_weights():
    w = torch.tensor([[2.0, 2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0]])
    assert effective_share(w.double().log()).tolist() == pytest.approx([0.5, 1, 0, 1.6 / 4])
    assert 7 * effective_share(torch.full((1, 7), 100.0, dtype=torch.float64)).item() == pytest.approx(7)
    assert 3 * effective_share(
        torch.tensor([[0.0, -1000.0, -1000.0]], dtype=torch.float64)
    ).item() == pytest.approx(1)


def test_systematic_resampling_keeps_the_expected_number_of_copies():
    torch.manual_seed(0)
    w, draws = LOG_W.softmax(1), 4000
    counts = torch.stack([torch.bincount(systematic(LOG_W), minlength=8) for _ in range(draws)]).double()
    expected = 4 * w.flatten()
    assert (counts >= expected.floor()).all() and (counts <= expected.ceil()).all()
    assert (counts.mean(0) - expected).abs().max() < 4 * 0.5 / draws**0.5
    assert (counts[:, :4].sum(1) == 4).all()  # populations do not mix


def test_picking_follows_the_weights():
    torch.manual_seed(0)
    found = torch.stack([pick(LOG_W) for _ in range(4000)])
    share = torch.bincount(found.flatten(), minlength=8) / 4000
    assert (share - LOG_W.softmax(1).flatten()).abs().max() < 4 * 0.5 / 4000**0.5


def test_a_population_without_weights_is_named():
    dead = torch.stack([torch.zeros(3), torch.full((3,), -torch.inf)])
    assert alive(dead[:1]) is not None
    with pytest.raises(ValueError, match="none of the 3 particles of population 1"):
        alive(dead)


def test_only_populations_that_are_low_are_resampled():
    torch.manual_seed(0)
    log_w = torch.tensor([[0.0, -90.0, -90.0], [0.0, -90.0, -90.0]], dtype=torch.float64)
    assert resampled(log_w, torch.tensor([True, False])).tolist() == [0, 0, 0, 3, 4, 5]
