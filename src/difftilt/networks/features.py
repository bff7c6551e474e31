"""Conditions and numbers as what a small network can read."""

import math

import torch
from torch import Tensor

from difftilt.shapes import Cond


def condition_features(cond: Cond) -> list[Tensor]:
    """One matrix per tensor among the conditions, a row per sample; text is not seen."""
    rows = []
    for value in cond.values():
        if isinstance(value, Tensor):
            row = value.float().flatten(2).mean(2) if value.ndim > 3 else value.float()
            row = row.mean(1) if row.ndim > 2 else row
            rows.append(waves(row[:, None]) if row.ndim == 1 else row)
    return rows


def waves(number: Tensor, count: int = 6) -> Tensor:
    """Sines and cosines of a column of numbers, so that nearby integers look different."""
    phase = number * 2.0 ** torch.arange(count, device=number.device) * math.pi / 2**3
    return torch.cat([phase.sin(), phase.cos()], 1)
