"""Networks whose passes are another function's for a while."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn as nn


@contextmanager
def passes_changed(
    networks: Iterable[nn.Module], change: Callable[[nn.Module, Any], Callable[..., Any]]
) -> Iterator[None]:
    """Networks answer as they are told to while the block runs, and as before after it.

    Args:
        change: Makes the new forward function of a network from it and its present one.
    """
    before = {network: vars(network).get("forward") for network in networks}
    for network in before:
        network.forward = change(network, network.forward)
    try:
        yield
    finally:
        for network, forward in before.items():
            del network.forward
            if forward is not None:  # another library had put its own there
                network.forward = forward
