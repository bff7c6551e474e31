"""What to measure next: rules that turn a belief into what the next batch is drawn for.

A rule answers with queries, each for a share of the batch: a reward, and the alpha that samples are drawn
with, p(x) ~ p_pre(x) exp(reward(x) / alpha). How a lab explores is thus apart from the objective, whose
reward and alpha stay. Any algorithm or sampler can serve a query.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from difftilt.guard import Reward
from difftilt.rewards.learned import Belief
from difftilt.settings import Count, Natural, NonNegative, Positive, Share, check_settings

PARTS = 5  # of a batch, where members disagree


@dataclass(frozen=True)
class Query:
    """What a part of a batch is drawn for.

    Args:
        reward: None draws from the pretrained model as it is.
        alpha: Weight of the KL while this part is drawn, which need not be the objective's.
        share: Of the batch.
    """

    reward: Reward | None
    alpha: Positive
    share: Share = 1.0

    def __post_init__(self):
        check_settings(self)


class Rule(Protocol):
    """Anything that says what a batch is drawn for."""

    def __call__(
        self, belief: Belief, alpha: float, round: int, rounds: int, generator: torch.Generator
    ) -> Sequence[Query]:
        """Queries whose shares sum to 1.

        Args:
            belief: What the labels so far say.
            alpha: The objective's.
            round: How many batches came back already.
            rounds: Batches in all.
            generator: Of members that are drawn.
        """
        ...


def random(
    belief: Belief, alpha: float, round: int, rounds: int, generator: torch.Generator
) -> Sequence[Query]:
    """Samples of the pretrained model, whatever is believed."""
    return [Query(None, alpha)]


def greedy(
    belief: Belief, alpha: float, round: int, rounds: int, generator: torch.Generator
) -> Sequence[Query]:
    """The mean, as if it were known."""
    return [Query(belief.mean, alpha)]


@dataclass(frozen=True)
class UCB:
    """The upper bound mean + beta std, with the objective's alpha.

    Source:
        SEIKO, Uehara et al. (2024). https://arxiv.org/abs/2402.16359
    """

    beta: NonNegative = 1.0

    def __post_init__(self):
        check_settings(self)

    def __call__(
        self, belief: Belief, alpha: float, round: int, rounds: int, generator: torch.Generator
    ) -> Sequence[Query]:
        return [Query(belief.upper(self.beta), alpha)]


@dataclass(frozen=True)
class Thompson:
    """For each part of the batch what one member believes, drawn at random, with the objective's alpha.

    Args:
        parts: Of equal size.
    """

    parts: Count = PARTS

    def __post_init__(self):
        check_settings(self)

    def __call__(
        self, belief: Belief, alpha: float, round: int, rounds: int, generator: torch.Generator
    ) -> Sequence[Query]:
        members = _members(belief, self.parts, generator)
        return [Query(member, alpha, 1 / self.parts) for member in members]


@dataclass(frozen=True)
class Ladder:
    """For each part of the batch one member, and each part drawn more sharply than the one before.

    The first part learns where the tuned model will be, the last one where the best is.

    Args:
        sharper: What the objective's alpha is divided by, one number per part, each above 0.
    """

    sharper: tuple[Positive, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)

    def __post_init__(self):
        check_settings(self)
        if not self.sharper:
            raise ValueError("sharper must be one number or more, but got none; (1.0, 2.0) makes two parts")

    def __call__(
        self, belief: Belief, alpha: float, round: int, rounds: int, generator: torch.Generator
    ) -> Sequence[Query]:
        members = _members(belief, len(self.sharper), generator)
        return [
            Query(member, alpha / factor, 1 / len(self.sharper))
            for member, factor in zip(members, self.sharper, strict=True)
        ]


@dataclass(frozen=True)
class Penalised:
    """The lower bound mean - beta std, with an alpha that falls to the objective's, round by round.

    Args:
        beta: At least 0.
        first: Factor of the objective's alpha in the first round; the last one has 1, those between fall by
            equal factors.
    """

    beta: NonNegative = 1.0
    first: Positive = 4.0

    def __post_init__(self):
        check_settings(self)

    def __call__(
        self, belief: Belief, alpha: float, round: int, rounds: int, generator: torch.Generator
    ) -> Sequence[Query]:
        if not 0 <= round < rounds:
            raise ValueError(f"round must be 0 to {rounds - 1} of {rounds} rounds, but got {round}")
        ahead = 1 - round / (rounds - 1) if rounds > 1 else 0.0
        return [Query(belief.lower(self.beta), alpha * self.first**ahead)]


RULES: dict[str, Rule] = {
    "ladder": Ladder(),
    "thompson": Thompson(),
    "ucb": UCB(),
    "greedy": greedy,
    "penalised": Penalised(),
    "random": random,
}


def parts(queries: Sequence[Query], count: Natural) -> list[int]:
    """How many of a batch each query gets: whole numbers that sum to `count`."""
    ends = [0]
    for number in range(len(queries)):
        ends.append(round(count * sum(query.share for query in queries[: number + 1])))
    return [end - start for start, end in itertools.pairwise(ends)]


def _members(belief: Belief, count: int, generator: torch.Generator) -> list[Reward]:
    """Members as rewards, drawn at random; none twice before all were."""
    if not belief.members:
        raise ValueError(
            "this rule asks the members of an ensemble, but got a belief that has none; learn with an"
            " ensemble, or ask with ucb, greedy, penalised or random"
        )
    order: list[int] = []
    while len(order) < count:
        order += torch.randperm(belief.members, generator=generator).tolist()
    return [belief.member(number) for number in order[:count]]
