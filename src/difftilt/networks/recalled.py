"""A network that remembers what it said, for a value and a step that ask it about the same states."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.policy import Policy

REMEMBERED = 16  # passes, each of as many rows as fit into memory at once


class Recalled(nn.Module):
    """Answers without a pass what it was asked a moment ago; all else is the network's own.

    Questions with a gradient always pass, and are not remembered.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self._known: deque[tuple[tuple[Any, ...], Any]] = deque(maxlen=REMEMBERED)

    def forward(self, *asked: Any) -> Any:
        if torch.is_grad_enabled():
            return self.network(*asked)
        for known, output in self._known:
            if _alike(asked, known):
                return output
        output = self.network(*asked)
        self._known.append((asked, output))
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


@contextmanager
def recalling(policy: Policy) -> Iterator[None]:
    """Within the block the policy's network is one that remembers; its weights must not move."""
    network = policy.network
    policy.network = Recalled(network)
    try:
        yield
    finally:
        policy.network = network


def _alike(a: Any, b: Any) -> bool:
    """Whether two questions are one: equal tensors, in equal places."""
    if a is b:
        return True
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(value, b[name]) for name, value in a.items())
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b
