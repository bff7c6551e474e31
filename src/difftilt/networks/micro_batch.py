"""Large batches through a large network, a few rows at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from difftilt.conditions import take
from difftilt.shapes import Cond, Index, Output, State


class MicroBatch(nn.Module):
    """Runs a network on `size` rows at a time: the same result, with the activations of `size` rows.

    Where gradients flow through several parts, each is computed again in the backward pass instead of being
    kept; losses over rows ask for one part at a time.

    Args:
        network: Maps (x, time, cond) to its prediction.
        size: Rows per pass, at least 1; as many as there are if not given.
        one_time: Whether the network takes rows of one time only. They are sorted first, so that few passes
            do.
    """

    def __init__(self, network: nn.Module, size: int | None, *, one_time: bool = False):
        super().__init__()
        if size is not None and size < 1:
            raise ValueError(f"a micro-batch needs at least 1 row, but got {size}")
        self.network, self.size, self.one_time = network, size, one_time

    def forward(self, x: State, time: Tensor, cond: Cond) -> Output:
        return in_parts(lambda rows: self.network(x[rows], time[rows], take(cond, rows)), self.parts(time))

    def parts(self, time: Tensor) -> list[Index]:
        """The rows that pass together, of all rows with these times."""
        groups = [torch.arange(len(time), device=time.device)]
        if self.one_time:
            groups = [(time == value).nonzero()[:, 0] for value in time.unique()]
        return [part for rows in groups for part in rows.split(self.size or len(rows))]


def in_parts(run: Callable[[Index], Any], parts: Sequence[Index]) -> Any:
    """What a function makes of all rows, some at a time, in the order of the rows.

    Args:
        run: Maps the numbers of some rows to a tensor with as many rows. Where there are several parts and
            gradients flow, it is run again in the backward pass.
        parts: All rows, each in one part.
    """
    if len(parts) == 1:
        return run(parts[0])
    again = torch.is_grad_enabled()
    made = [checkpoint(run, rows, use_reentrant=False) if again else run(rows) for rows in parts]
    return torch.cat(made)[torch.cat(list(parts)).argsort()]
