"""A value network for any state: what a critic, or a learned soft value, is made of."""

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.data.across import gathered
from difftilt.networks.features import condition_features, waves
from difftilt.policy import Policy
from difftilt.shapes import Cond, PerSample, Some, State, Step
from difftilt.transition import one_hot


class ValueNetwork(nn.Module):
    """A small MLP from (x_t, t, c) to one number per row, zero at first.

    Args:
        policy: The chain whose states it values; tokens are seen as one-hot vectors.
        cond: An example of conditions.
        seen: Those of its entries that the network sees; all by default. Text it never sees.
        width: Units in each of two hidden layers.
        octaves: Of sines and cosines of real states that it sees beside them, for values that oscillate.
    """

    centre: Tensor
    scale: Tensor
    calibrated: Tensor

    def __init__(
        self, policy: Policy, cond: Cond, seen: Cond | None = None, width: int = 128, octaves: int = 0
    ):
        super().__init__()
        self.steps, self.symbols, self.octaves = policy.steps, policy.symbols, octaves
        x = policy.initial(cond).sample()
        t = torch.zeros(len(x), device=x.device)
        features = self._features(x, t, cond if seen is None else seen).shape[1]
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        hidden = (nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.mlp = nn.Sequential(*hidden, last)
        self.register_buffer("centre", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("calibrated", torch.tensor(False))

    def forward(self, x: State, t: Step, cond: Cond) -> PerSample:
        return self.centre + self.scale * self.mlp(self._features(x, t, cond))[:, 0]

    @torch.no_grad()
    def calibrate(self, values: Some, least: float = 1.0) -> None:
        """The first time, moves 0 to the mean of some values and stretches 1 to their deviation.

        What is learned does not depend on the values' origin and unit then.

        Args:
            least: The smallest deviation that is believed.
        """
        if not self.calibrated:
            values = gathered(values)
            self.centre.copy_(values.mean())
            self.scale.copy_(values.std(correction=0).clamp(min=least))
            self.calibrated.fill_(True)

    def _features(self, x: State, t: Tensor, cond: Cond) -> Tensor:
        time = t.float()[:, None] / self.steps
        x = (one_hot(x, self.symbols) if self.symbols else x).float().flatten(1)
        if self.octaves and not self.symbols:
            x = torch.cat([x, waves(x.reshape(-1, 1), self.octaves).view(len(x), -1)], 1)
        return torch.cat([x, time, waves(time), *condition_features(cond)], 1)


def ready(network: ValueNetwork | None) -> ValueNetwork:
    """The network, once it was built."""
    if network is None:
        raise ValueError("the algorithm has no value network yet; call setup(policy, cond) before training")
    return network
