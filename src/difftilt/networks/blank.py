"""Networks that answer with zeros, so that what stands around them can be tried at no cost."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import take
from difftilt.networks.forward import passes_changed


def blanked(networks: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """Networks answer with zeros while the block runs, in the shape that one pass of one row shows.

    The zeros pass gradients, of zero, to the weights and to what the network was given.
    """
    return passes_changed(networks, _blank)


def _blank(network: nn.Module, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    shown: dict[tuple[Any, ...], Tensor] = {}
    weight = next((p for p in network.parameters() if p.requires_grad), None)

    def run(x: Tensor, *rest: Any) -> Tensor:
        kind = (*x.shape[1:], x.dtype)
        if kind not in shown:
            with torch.no_grad():
                shown[kind] = torch.zeros_like(forward(*(_first_row(value) for value in (x, *rest))))
        answer = shown[kind].expand(len(x), *shown[kind].shape[1:]).clone()
        if x.is_floating_point():
            tied = 0 * x.nan_to_num().flatten(1).sum(1)
            answer = answer + tied.nan_to_num().view(-1, *(1,) * (answer.ndim - 1)).to(answer)
        return answer if weight is None else answer + 0 * weight.flatten()[0].to(answer)

    return run


def _first_row(value: Any) -> Any:
    if isinstance(value, Mapping):
        return take(value, torch.tensor([0]))
    return value[:1] if isinstance(value, Tensor) and value.ndim else value
