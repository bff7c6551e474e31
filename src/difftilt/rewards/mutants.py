"""What to measure next without a diffusion model: proposals made straight from labels.

They are what query rules are compared with. Each answers with up to `count` new sequences, none twice and
none that was measured.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

import annotated_types as at
import torch

from difftilt.rewards.learned import Belief, Labels
from difftilt.settings import Count, NonNegative, Share, check_settings
from difftilt.shapes import Sequences, Some

Letters = Annotated[int, at.Ge(2)]
Settle = Callable[[Sequences], Sequences]
TRIES = 100  # broods, before fewer sequences than were asked for are proposed
ROWS = 2**12  # sequences that are predicted at a time


@runtime_checkable
class Proposer(Protocol):
    """Anything that proposes the next batch."""

    def __call__(self, labels: Labels, belief: Belief, count: int, generator: torch.Generator) -> Sequences:
        """Up to `count` sequences.

        Args:
            labels: Tokens and what was measured of them.
            belief: What they say of other sequences.
            count: Of proposals.
        """
        ...


def as_they_are(tokens: Sequences) -> Sequences:
    """Everything may be measured, and is written in one way."""
    return tokens


@dataclass(frozen=True)
class Genetic:
    """A genetic algorithm: two of the best are crossed position by position, and one letter changes.

    It asks no model.

    Args:
        categories: Letters, the first tokens; larger ones, such as an end, stay where they are.
        settle: Which of some sequences may be measured, in the one way each is written.
        share: Of the labels, the best, which are parents.
        parents: At least so many.
        brood: Children that are made at a time.
    """

    categories: Letters
    settle: Settle = as_they_are
    share: Share = 1 / 8
    parents: Count = 24
    brood: Count = 256

    def __post_init__(self):
        check_settings(self)

    def __call__(self, labels: Labels, belief: Belief, count: int, generator: torch.Generator) -> Sequences:
        best = labels.score.argsort(descending=True, stable=True)
        parents = labels.sample[best[: max(self.parents, round(self.share * len(labels)))]]

        def broods() -> Iterator[Sequences]:
            for _ in range(TRIES):
                children = crossed(parents, self.brood, generator)
                yield self.settle(mutated(children, self.categories, generator))

        return _new(broods(), labels, count)


@dataclass(frozen=True)
class AdaLead:
    """Walks on the belief's mean from children of the best: a change of one letter stays if it is no loss.

    The best that was met anywhere on the walks is proposed.

    Args:
        categories: As for `Genetic`.
        settle: As for `Genetic`.
        slack: Parents score so near to the best label, as a share of the range of all scores.
        parents: At least so many.
        walks: At a time.
        steps: Of a walk.
        broods: How often walks begin.

    Source:
        Sinai et al. (2020). https://arxiv.org/abs/2010.02141
    """

    categories: Letters
    settle: Settle = as_they_are
    slack: NonNegative = 0.05
    parents: Count = 8
    walks: Count = 64
    steps: Count = 6
    broods: Count = 40

    def __post_init__(self):
        check_settings(self)

    def __call__(self, labels: Labels, belief: Belief, count: int, generator: torch.Generator) -> Sequences:
        score = labels.score
        best = score.argsort(descending=True, stable=True)
        near = (score >= score.max() - self.slack * (score.max() - score.min())).sum().item()
        parents = labels.sample[best[: max(self.parents, int(near))]]
        met = [seen for _ in range(self.broods) for seen in self._walks(parents, belief, generator)]
        found = _new(iter([self.settle(torch.cat(met))]), labels, None)
        return found[predicted(belief, found, 0.0).argsort(descending=True, stable=True)[:count]]

    def _walks(self, parents: Sequences, belief: Belief, generator: torch.Generator) -> Iterator[Sequences]:
        x = crossed(parents, self.walks, generator)
        value = belief.mean(x, {})
        for _ in range(self.steps):
            changed = mutated(x, self.categories, generator)
            gained = belief.mean(changed, {})
            kept = gained >= value
            yield changed[kept]
            x, value = torch.where(kept[:, None], changed, x), torch.where(kept, gained, value)


@dataclass(frozen=True)
class TopOfLibrary:
    """The highest upper bounds mean + beta std of a list: Bayesian optimisation where one can list all.

    Args:
        library: Sequences of which any may be measured.
        beta: At least 0.
    """

    library: Sequences
    beta: NonNegative = 1.0

    def __post_init__(self):
        check_settings(self)

    def __call__(self, labels: Labels, belief: Belief, count: int, generator: torch.Generator) -> Sequences:
        best = predicted(belief, self.library, self.beta).argsort(descending=True, stable=True)
        return _new(iter([self.library[best]]), labels, count)


def predicted(belief: Belief, tokens: Sequences, beta: float) -> Some:
    """mean + beta std, a few thousand sequences at a time."""
    return torch.cat([belief.upper(beta)(rows, {}) for rows in tokens.split(ROWS)])


def crossed(parents: Sequences, count: int, generator: torch.Generator) -> Sequences:
    """Children of two parents each, every position from either."""
    one, other = parents[torch.randint(len(parents), (2, count), generator=generator)]
    return torch.where(torch.rand(one.shape, generator=generator) < 0.5, one, other)


def mutated(tokens: Sequences, categories: int, generator: torch.Generator) -> Sequences:
    """One position of each sequence has another letter, if what stands there is a letter."""
    rows, changed = torch.arange(len(tokens)), tokens.clone()
    place = torch.randint(tokens.shape[1], (len(tokens),), generator=generator)
    shift = torch.randint(1, categories, (len(tokens),), generator=generator)
    old = tokens[rows, place]
    changed[rows, place] = torch.where(old < categories, (old + shift) % categories, old)
    return changed


def _new(broods: Iterator[Sequences], labels: Labels, count: int | None) -> Sequences:
    """The first `count` sequences, or all, of those that were not measured, none twice."""
    measured, found = set(map(tuple, labels.sample.tolist())), dict[tuple[int, ...], None]()
    for brood in broods:
        found |= dict.fromkeys(word for word in map(tuple, brood.tolist()) if word not in measured)
        if count is not None and len(found) >= count:
            break
    words = list(found)[:count]
    return torch.tensor(words, dtype=torch.long).view(len(words), labels.sample.shape[1])
