"""How many samples went through the denoisers, the unit in which methods are compared."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor


class NetworkCalls:
    """Samples passed through networks, forward and backward apart.

    A network that calls another counted one (an adapter switched off, a guidance) counts once, and what
    gradient checkpointing computes again is not counted.
    """

    def __init__(self):
        self.forward, self.backward, self._depth = 0, 0, 0

    @contextmanager
    def watching(self, networks: Iterable[nn.Module]) -> Iterator[None]:
        """Counts the calls of these networks while the block runs."""
        handles = []
        for network in set(networks):
            handles.append(network.register_forward_pre_hook(self._enter))
            handles.append(network.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, network: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._depth += 1

    def _leave(self, network: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._depth -= 1
        if self._depth or not isinstance(output, Tensor):
            return
        count = len(output)
        if torch._C._current_graph_task_id() == -1:  # else a backward pass is running: a recomputation
            self.forward += count
        if output.requires_grad:
            output.register_hook(lambda gradient: self._flowed(count))

    def _flowed(self, count: int) -> None:
        self.backward += count
