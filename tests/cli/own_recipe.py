"""A recipe that is not in the package: its own network, chain and reward, in one file."""

import torch

from difftilt import PPO, AnyAlgorithm, Job, Policy, Training, tune
from difftilt.conditions import batch_size
from difftilt.transition import Gaussian


class Network(torch.nn.Module):
    """One shift per step."""

    def __init__(self, steps: int):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(steps + 1, 2))

    def forward(self, x, t, cond):
        return x + self.shift[t]


class Walk(Policy):
    """A random walk from the origin."""

    def __init__(self, steps: int):
        super().__init__()
        self.network, self.steps = Network(steps), steps

    def initial(self, cond):
        return Gaussian(torch.zeros(batch_size(cond), 2), torch.ones(batch_size(cond), 2))

    def forward(self, x, t, cond):
        return Gaussian(self.network(x, t, cond), torch.full_like(x, 0.5))

    def decode(self, x, cond):
        return x


def to_the_right(sample, cond):
    """How far to the right the walk ends."""
    return sample[:, 0]


def walk(
    algorithm: AnyAlgorithm = PPO(epochs=1),
    alpha: float = 1.0,
    steps: int = 4,
    training: Training = Training(rounds=10, batch=64, evaluate=1024, learning_rate=0.05),
) -> Job:
    """Tunes a random walk to end on the right.

    Args:
        algorithm: How to tune.
        alpha: Weight of the KL, above 0.
        steps: Steps of the walk, at least 1.
        training: How long and how fast to train.
    """
    return tune(Walk(steps), to_the_right, algorithm, alpha, training)
