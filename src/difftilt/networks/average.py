"""Weights that follow others slowly."""

import torch
import torch.nn as nn


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Moves a moving average of a module's parameters: average <- decay average + (1 - decay) module."""
    for mean, now in zip(average.parameters(), module.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
