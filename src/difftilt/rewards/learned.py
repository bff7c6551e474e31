"""Rewards that nobody knows: what measured samples say about any other one, and how surely.

A `Learner` makes a `Belief` of labels. What a belief answers are rewards like any other, so that every
algorithm and sampler takes them: its mean, a lower bound to be careful where data end, an upper bound to
explore there, and single members, which are draws of what the reward may be.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from difftilt.guard import Reward
from difftilt.shapes import Cond, Index, Members, PerSample, Sample

HALF_WIDTH = 1.6449  # of a 90 % interval, in standard deviations


@dataclass(frozen=True)
class Labels:
    """Samples that were measured.

    Args:
        sample: As a policy decodes them: tokens, one-hot vectors or real numbers.
        score: What was measured, noise included; the higher the better.
    """

    sample: Sample
    score: PerSample

    def __len__(self) -> int:
        return len(self.score)

    def take(self, rows: Index) -> "Labels":
        return Labels(self.sample[rows], self.score[rows])


@dataclass(frozen=True)
class Prediction:
    """What is believed of each sample's reward.

    Args:
        mean: What to expect.
        std: How far off the mean may be, as a standard deviation: it falls where more was measured.
        noise: Standard deviation of one measurement around the true reward; 0 where it is not known, or is
            in `std`.
        members: The reward as each member of an ensemble has it; no rows if there are none.
    """

    mean: PerSample
    std: PerSample
    noise: PerSample
    members: Members

    def covers(self, score: PerSample) -> PerSample:
        """1 where the 90 % interval of a measurement holds the one that was made, else 0."""
        return ((score - self.mean).abs() <= HALF_WIDTH * self.total).to(self.mean.dtype)

    @property
    def total(self) -> PerSample:
        """Standard deviation of a measurement around the mean: both of the above."""
        return torch.hypot(self.std, self.noise)


@dataclass(frozen=True)
class Belief:
    """What labels say about the reward of any sample. It is deterministic.

    Args:
        predict: Maps samples to what is believed of them.
        scale: Factor of the standard deviations, above 0, that makes intervals as wide as they should be;
            see `held_out.calibrated`.
        members: How many an ensemble has; 0 if it is none.
        alone: The reward of samples as the member of a number has it, where that takes less than to ask all.
    """

    predict: Callable[[Sample], Prediction]
    scale: float = 1.0
    members: int = 0
    alone: Callable[[Sample, int], PerSample] | None = None

    def __call__(self, sample: Sample) -> Prediction:
        found = self.predict(sample)
        return dataclasses.replace(found, std=self.scale * found.std, noise=self.scale * found.noise)

    def mean(self, sample: Sample, cond: Cond) -> PerSample:
        """The reward to expect."""
        return self(sample).mean

    def lower(self, beta: float) -> Reward:
        """mean - beta std: careful, where labels are few."""
        return self._bound(-beta, f"mean - {beta:g} std")

    def upper(self, beta: float) -> Reward:
        """mean + beta std: curious, where labels are few (UCB)."""
        return self._bound(beta, f"mean + {beta:g} std")

    def member(self, number: int) -> Reward:
        """What one member believes: a draw from what the reward may be (Thompson sampling).

        Raises:
            ValueError: When it is called, if there is no such member.
        """

        def member(sample: Sample, cond: Cond) -> PerSample:
            if not 0 <= number < self.members:
                raise ValueError(
                    f"the belief has {self.members} members, counted from 0, but got number {number}; ask"
                    " for one of these, or learn with an ensemble"
                )
            return self(sample).members[number] if self.alone is None else self.alone(sample, number)

        return member

    def _bound(self, beta: float, name: str) -> Reward:
        def bound(sample: Sample, cond: Cond) -> PerSample:
            found = self(sample)
            return found.mean + beta * found.std

        bound.__name__ = name
        return bound


@runtime_checkable
class Learner(Protocol):
    """Anything that makes a belief of labels."""

    def fit(self, labels: Labels) -> Belief: ...


def belief_of(predict: Callable[[Any], tuple[Any, Any]]) -> Belief:
    """The belief of any model that answers a mean and a standard deviation per sample.

    Args:
        predict: Maps samples to two tensors or arrays, such as scikit-learn's
            `lambda x: process.predict(x.flatten(1), return_std=True)`.
    """

    def prediction(sample: Sample) -> Prediction:
        mean, std = (torch.as_tensor(numbers, device=sample.device) for numbers in predict(sample))
        return Prediction(mean, std, torch.zeros_like(std), mean.new_zeros(0, len(mean)))

    return Belief(prediction)


def penalised(reward: Reward, penalty: Reward, beta: float) -> Reward:
    """reward - beta penalty: careful by any measure of how far a sample is from what is known (BRAID).

    Source:
        Uehara et al. (2024). https://arxiv.org/abs/2405.19673
    """

    def careful(sample: Sample, cond: Cond) -> PerSample:
        return torch.as_tensor(reward(sample, cond)) - beta * torch.as_tensor(penalty(sample, cond))

    return careful
