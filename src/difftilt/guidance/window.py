"""A chain that draws noise at a few of its steps only: those before make its start, those after decode.

MixGRPO (Li et al., 2025), https://arxiv.org/abs/2507.21802, and Flow-GRPO-Fast, of the authors of Flow-GRPO
(Liu et al., 2025), https://arxiv.org/abs/2505.05470.
"""

from dataclasses import dataclass
from typing import Any

import torch

from difftilt.conditions import batch_size
from difftilt.policy import Policy, Wrapped, level
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.shapes import Cond, PerSample, Sample, State, Step
from difftilt.transition import Transition


@dataclass(frozen=True)
class Given(Transition):
    """States that are known, and have probability 1."""

    x: State

    def sample(self) -> State:
        return self.x.clone()

    def rsample(self) -> State:
        return self.sample()

    def log_prob(self, x: State) -> PerSample:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def kl(self, other: "Given") -> PerSample:
        return self.log_prob(self.x)

    def tempered(self, temperature: float) -> "Given":
        return self


class Window(Wrapped):
    """The steps t = first, ..., first - count + 1 of a chain, as they are, from given states.

    The steps after them draw nothing and belong to decoding, with the weights that there are then.

    Args:
        policy: The chain.
        start: x at t = first, one row per condition.
        first: In count, ..., T.
        count: Steps with noise, at least 1.
    """

    def __init__(self, policy: Policy, start: State, first: int, count: int):
        super().__init__(policy)
        self.steps, self._start, self._later = count, start, first - count

    def initial(self, cond: Cond) -> Given:
        return Given(self._start[: batch_size(cond)])  # of some conditions, only the density is asked for

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        return self.base(x, t + self._later, cond)

    def decode(self, x: State, cond: Cond) -> Sample:
        return self.base.decode(without_noise(self.base, x, self._later, 0, cond), cond)


def without_noise(policy: Policy, x: State, first: int, last: int, cond: Cond) -> State:
    """x at t = last of the steps without noise from x at t = first.

    Raises:
        ValueError: If the chain has no such steps.
    """
    for t in range(first, last, -1):
        chain: Any = policy
        if not isinstance(chain, GaussianPolicy):
            raise ValueError(
                f"a {type(policy).__name__} has no steps without noise; use algorithm grpo without a window"
            )
        x = chain.without_noise(x, level(x, t), cond)
    return x
