"""A value network for any state: what a critic, or a learned soft value, is made of."""

import math

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.shapes import Cond, PerSample, State, Step


class ValueNetwork(nn.Module):
    """A small MLP from (x_t, t, c) to one number per row.

    Args:
        x: An example of states, for their shape.
        cond: An example of conditions. Its tensors are seen; text is not.
        steps: T, to put t on a scale of 1.
        width: Units in each of two hidden layers.
    """

    def __init__(self, x: State, cond: Cond, steps: int, width: int = 128):
        super().__init__()
        self.steps = steps
        features = self._features(x, torch.zeros(len(x), device=x.device), cond).shape[1]
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = (nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.mlp = nn.Sequential(*hidden, last)

    def forward(self, x: State, t: Step, cond: Cond) -> PerSample:
        return self.mlp(self._features(x, t, cond))[:, 0]

    def _features(self, x: State, t: Tensor, cond: Cond) -> Tensor:
        time = t.float()[:, None] / self.steps
        parts = [x.float().flatten(1), time, _waves(time)]
        for value in cond.values():
            if isinstance(value, Tensor):
                row = value.float().flatten(2).mean(2) if value.ndim > 3 else value.float()
                row = row.mean(1) if row.ndim > 2 else row
                parts.append(_waves(row[:, None]) if row.ndim == 1 else row)
        return torch.cat(parts, 1)


def _waves(number: Tensor, count: int = 6) -> Tensor:
    """Sines and cosines of a column of numbers, so that nearby integers look different."""
    phase = number * 2.0 ** torch.arange(count, device=number.device) * math.pi / 2**3
    return torch.cat([phase.sin(), phase.cos()], 1)
