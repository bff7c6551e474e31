"""A new condition for a pretrained network, so that tuning can make its samples obey it.

With the reward log p(y | x, c) of a classifier and alpha = 1 the optimum is p(x | c, y) for every y at once,
though nothing but the classifier has seen x and y together.
"""

from math import prod

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.shapes import Cond, Output, Real, State

OCTAVES = 12  # of the time, with periods of 2 pi, 4 pi, ...: networks are told up to 999


class Conditional(nn.Module):
    """network(x, time, cond) + branch(x, time, y), where y = cond[name] and the branch is zero at first.

    So tuning starts from the pretrained distribution, whatever y is. A frozen network keeps what it knows and
    the branch learns the rest.

    Args:
        network: Maps (x, time, cond) to its prediction.
        name: Of the condition y, which the network does not know.
        classes: How many values y has, 0 to classes - 1.
        state: Shape of one state as the network sees it: one-hot vectors where states are tokens.
        output: Shape of one prediction; that of a state by default.
        width: Units in each of the branch's two hidden layers.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        classes: int,
        state: tuple[int, ...],
        output: tuple[int, ...] | None = None,
        width: int = 128,
    ):
        super().__init__()
        self.network, self.name, self.classes = network, name, classes
        last = nn.Linear(width, prod(output or state))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        features = prod(state) + 2 * OCTAVES + classes
        hidden = (nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.branch = nn.Sequential(*hidden, last)

    def forward(self, x: State, time: Tensor, cond: Cond) -> Output:
        y = cond.get(self.name)
        if not isinstance(y, Tensor) or (len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.classes):
            raise ValueError(
                f"the network needs cond['{self.name}'] with numbers from 0 to {self.classes - 1}, but got"
                f" {y if isinstance(y, Tensor) else sorted(cond)}"
            )
        asked = nn.functional.one_hot(y, self.classes).float()
        features = torch.cat([x.float().flatten(1), _waves(time), asked], 1)
        base = self.network(x, time, cond)
        return base + self.branch(features).view_as(base).to(base.dtype)


def _waves(time: Tensor) -> Real:
    """Sines and cosines of the time, whatever its unit."""
    phase = time.float()[:, None] * 0.5 ** torch.arange(OCTAVES, device=time.device)
    return torch.cat([phase.sin(), phase.cos()], 1)
