"""Large batches through a large network, a few rows at a time."""

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from difftilt.conditions import take
from difftilt.shapes import Cond, Output, State


class MicroBatch(nn.Module):
    """Runs a network on `size` rows at a time: the same result, with the activations of `size` rows.

    Where gradients flow, each part is computed again in the backward pass instead of being kept.

    Args:
        network: Maps (x, time, cond) to its prediction.
        size: Rows per pass, at least 1.
    """

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        if size < 1:
            raise ValueError(f"a micro-batch needs at least 1 row, but got {size}")
        self.network, self.size = network, size

    def forward(self, x: State, time: Tensor, cond: Cond) -> Output:
        if len(x) <= self.size:
            return self.network(x, time, cond)
        parts = []
        for rows in torch.arange(len(x), device=x.device).split(self.size):
            part = (x[rows], time[rows], take(cond, rows))
            if torch.is_grad_enabled():
                parts.append(checkpoint(self.network, *part, use_reentrant=False))
            else:
                parts.append(self.network(*part))
        return torch.cat(parts)
