"""The spins that `peers.py` has two libraries draw: p(s) ~ exp(s' J s), of which one is decided at a time.

It needs nothing but torch, as every peer lives in an environment of its own.
"""

from collections.abc import Callable

import torch
import torch.nn as nn
from torch import Tensor

SPINS, HIDDEN = 8, 128
UNSET = 2  # beside the two directions 0 and 1
BATCH, UPDATES, RATE = 256, 100, 1e-3  # of an epoch


def couplings() -> Tensor:
    """J, random and symmetric: some of 256 states are e^10 as likely as others."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(SPINS, SPINS, generator=generator) / SPINS**0.5
    return (half + half.T) / 2


class Net(nn.Module):
    """From one-hot spins, set or not, to numbers."""

    def __init__(self, answers: int):
        super().__init__()
        inner = [nn.Linear(3 * SPINS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
        self.layers = nn.Sequential(*inner, nn.Linear(HIDDEN, answers))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.flatten(1))


@torch.no_grad()
def distance(decide: Callable[[Tensor], Tensor]) -> dict[str, float]:
    """How far what is drawn is from p, by summation over all ways to draw it.

    Args:
        decide: Maps states (batch, SPINS) to the probabilities (batch, SPINS, 2) of what is set next.
    """
    states = torch.cartesian_prod(*[torch.arange(3)] * SPINS)
    place = 3 ** torch.arange(SPINS - 1, -1, -1)
    mass = torch.zeros(len(states), dtype=torch.float64)
    mass[-1] = 1  # none is set
    for unset in range(SPINS, 0, -1):
        rows = ((states == UNSET).sum(1) == unset).nonzero()[:, 0]
        drawn = mass[rows, None, None] * decide(states[rows]).double()
        child = rows[:, None, None] - place[:, None] * (UNSET - torch.arange(2))
        mass.index_add_(0, child.clamp(min=0).flatten(), drawn.flatten())
    whole = (states != UNSET).all(1)
    s = 2.0 * states[whole] - 1
    p, target = mass[whole], ((s @ couplings()) * s).sum(1).double().softmax(0)
    return {
        "total_variation": (p - target).abs().sum().item() / 2,
        "kl_nats": torch.xlogy(p, p / target).sum().item(),
        "mass": p.sum().item(),
    }
