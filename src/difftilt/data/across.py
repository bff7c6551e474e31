"""The rows of all processes of a run, so that its statistics mean the same on any number of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from difftilt.conditions import context_keys, numbered
from difftilt.shapes import Cond, Index

_together = False  # a process is in one process group


@contextmanager
def together(processes: int) -> Iterator[None]:
    """What follows is done by all processes in step, each with its own rows, while the block runs.

    Args:
        processes: How many there are; with one, or before they have found each other, nothing changes.
    """
    global _together
    before, _together = _together, processes > 1 and dist.is_initialized()
    try:
        yield
    finally:
        _together = before


def gathered(x: Tensor, dim: int = -1) -> Tensor:
    """The entries of all processes along one dimension, in the processes' order, without gradient.

    Alone, it is `x` itself. All processes must ask; how many entries each has may differ.
    """
    if not _together:
        return x
    device = torch.device("cpu") if "gloo" in dist.get_backend() else torch.device("cuda")
    own = x.detach().movedim(dim, 0).contiguous().to(device)
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(own)], device=device))
    most = max(int(count) for count in counts)
    padded = own.new_zeros(most, *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    whole = torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])
    return whole.movedim(0, dim).to(x.device)


def gathered_keys(keys: list[str]) -> list[str]:
    """The lasting hashes of the conditions of all processes' samples, given one's own."""
    if not _together:
        return keys
    rows = torch.tensor([list(bytes.fromhex(key)) for key in keys], dtype=torch.uint8)
    return [bytes(row).hex() for row in gathered(rows.view(len(keys), 32), 0).tolist()]


def context(cond: Cond) -> Index:
    """A small number per sample, equal where all conditions are equal, in whatever process."""
    keys = context_keys(cond, lasting=_together)
    return numbered(keys, gathered_keys(keys))
