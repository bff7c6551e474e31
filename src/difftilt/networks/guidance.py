"""Classifier-free guidance (Ho and Salimans, 2022) as a network around a network."""

from collections.abc import Mapping

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import concat
from difftilt.shapes import Cond, Output, State


class ClassifierFreeGuidance(nn.Module):
    """uncond + scale (cond - uncond), the same in sampling and in training, so that ratios start at 1.

    Args:
        network: Maps (x, time, cond) to its prediction.
        scale: 1 is the conditional model, 0 the unconditional one.
        null: Entries of `cond`, each for one sample, that ask for nothing; a tensor without batch dimension.
    """

    def __init__(self, network: nn.Module, scale: float, null: Mapping[str, Tensor]):
        super().__init__()
        self.network, self.scale, self.asked = network, scale, tuple(null)
        for name, value in null.items():
            self.register_buffer(f"null_{name}", value)

    def forward(self, x: State, time: Tensor, cond: Cond) -> Output:
        if missing := [name for name in self.asked if name not in cond]:
            raise ValueError(f"guidance away from {missing} needs conditions of that name, but got {[*cond]}")
        blanks = {name: self.get_buffer(f"null_{name}").expand_as(cond[name]) for name in self.asked}
        both = concat([cond, {**cond, **blanks}])
        asked, blank = self.network(torch.cat([x, x]), torch.cat([time, time]), both).chunk(2)
        return blank + self.scale * (asked - blank)
