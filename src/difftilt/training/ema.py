"""An exponential moving average of the weights, which often samples better than the last ones."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.training.sharding import placed


class EMA:
    """average <- decay * average + (1 - decay) * weights, after every gradient step.

    Args:
        model: Its trainable parameters are averaged.
        decay: In [0, 1); the average looks back over about 1 / (1 - decay) gradient steps.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA must be in [0, 1), but got {decay}")
        self.decay = decay
        self._weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the present weights."""
        torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights while the block runs."""
        trained = {name: p.detach().clone() for name, p in self._weights.items()}
        _copy(self._average, self._weights)
        try:
            yield
        finally:
            _copy(trained, self._weights)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if state.keys() != self._average.keys():
            raise ValueError(
                f"a model that trains {sorted(self._average)} needs their average, but got one of"
                f" {sorted(state)}"
            )
        _copy(state, self._average)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(placed(source[name], tensor))
