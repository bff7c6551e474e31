"""The memory that a computation takes, and that batches are cut to it."""

import torch

from difftilt.samplers.memory import footprint


def test_counts_what_is_made_and_no_views():
    x = torch.zeros(1000)  # 4,000 bytes that were there before
    assert footprint(lambda: x + 1) == 4000
    assert footprint(lambda: (x + 1).view(10, 100).T) == 4000
    assert footprint(lambda: x.view(10, 100)) == 0
    assert footprint(lambda: x.mul_(2)) == 0
    assert footprint(lambda: (x + 1) * 2) == 8000


def test_bounds_the_activations_of_a_network():
    network = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.SiLU(), torch.nn.Linear(256, 8))
    one, ten = (footprint(lambda n=n: network(torch.zeros(n, 64))) for n in (1, 10))
    assert 4 * (64 + 256 + 256 + 8) <= one < 8 * (64 + 256 + 256 + 8)
    assert ten == 10 * one
