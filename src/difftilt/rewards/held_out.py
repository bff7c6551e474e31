"""What a learner is worth, by labels that it has not seen."""

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.guard import Reward
from difftilt.rewards.learned import HALF_WIDTH, Belief, Labels, Learner, Prediction
from difftilt.shapes import Cond, Index, PerSample, Sample
from difftilt.transition import one_hot

FOLDS = 5
FEWEST = 20  # labels
INTERVAL = 0.9  # of the measurements lie inside
TENTH = 10  # one label in so many is held out by a shift
PRIOR = 0.3  # how far from 1 slopes are thought to be before any is seen
ROWS = 2**7  # whose distances to all labels are found at a time


@dataclass(frozen=True)
class Judgement:
    """How predictions compare with measurements that the learner has not seen.

    Args:
        count: Of these measurements.
        correlation: Pearson's.
        error: Root mean square, in units of the score.
        coverage: Share of the measurements in their 90 % intervals; .9 if the belief is as sure as it should
            be.
        slope: Of the line that predicts measurements best from predictions; less than 1 where what is
            predicted to be good is less good than that, as where noise was learned.
        slope_se: Its standard error.
    """

    count: int
    correlation: float
    error: float
    coverage: float
    slope: float = math.nan
    slope_se: float = math.nan

    @property
    def optimism(self) -> float:
        """The share of a predicted gain that is likely not there, in [0, 1]; 0 where nothing is known.

        1 - slope, where few labels move the slope less far from 1: that is its mean under the prior N(1,
        `PRIOR`^2).
        """
        seen = self.slope_se**2
        away = (1 - self.slope) * PRIOR**2 / (PRIOR**2 + seen)
        return min(max(away, 0.0), 1.0) if math.isfinite(away) else 0.0

    @property
    def correlation_se(self) -> float:
        return correlation_error(self.correlation, self.count)


def correlation_error(correlation: float, count: int) -> float:
    """The standard error of Pearson's r of n pairs, (1 - r^2) / sqrt(n - 1)."""
    return (1 - correlation**2) / (count - 1) ** 0.5


def calibrated(learner: Learner, labels: Labels, seed: int = 0) -> Belief:
    """What a learner makes of all labels, as sure as `cross_validated` says that it should be."""
    scale, _ = cross_validated(learner, labels, seed)
    return dataclasses.replace(learner.fit(labels), scale=scale)


def cross_validated(learner: Learner, labels: Labels, seed: int = 0) -> tuple[float, Judgement]:
    """A belief's scale, and what the learner is worth.

    In turn each of five parts of the labels is predicted from the rest. The scale is the factor with which
    the 90 % intervals of all these predictions hold 90 % of the measurements; each part's own coverage is
    judged with the factor of the other parts.

    Args:
        seed: Of the parts.

    Raises:
        ValueError: If there are too few labels.
    """
    if len(labels) < FEWEST:
        raise ValueError(
            f"a learner is judged by {FEWEST} labels or more, but got {len(labels)}; measure more"
        )
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    parts, found = order.chunk(FOLDS), []
    for part in parts:
        rest = torch.cat([other for other in parts if other is not part])
        found.append(learner.fit(labels.take(rest))(labels.sample[part]))
    wrong = [_in_deviations(guess, labels.score[part]) for guess, part in zip(found, parts, strict=True)]
    covered = [
        (own <= HALF_WIDTH * _factor(torch.cat([other for other in wrong if other is not own]))).float()
        for own in wrong
    ]
    mean = torch.cat([guess.mean for guess in found])
    return _factor(torch.cat(wrong)), _judged(mean, labels.score[order], torch.cat(covered))


def judge(belief: Belief, labels: Labels) -> Judgement:
    """What a belief is worth on labels that it was not learned from."""
    found = belief(labels.sample)
    return _judged(found.mean, labels.score, found.covers(labels.score))


def best_tenth(labels: Labels) -> tuple[Index, Index]:
    """The rows of all labels but the best tenth, and those of that: what tuning will ask for."""
    return _last_tenth(labels.score)


def most_remote_tenth(labels: Labels, categories: int) -> tuple[Index, Index]:
    """The rows of all labels but the tenth that lies farthest from every other one, and those of that.

    Args:
        categories: As for `nearest`.
    """
    return _last_tenth(nearest(labels.sample, labels.sample, categories, second=True))


def _last_tenth(values: PerSample) -> tuple[Index, Index]:
    """The rows of all but the largest tenth, and of that."""
    order, held_out = values.argsort(stable=True), max(len(values) // TENTH, 1)
    return order[:-held_out], order[-held_out:]


def nearest(sample: Sample, known: Tensor, categories: int, second: bool = False) -> PerSample:
    """How far each sample is from the nearest known one.

    Of sequences it is the share of positions that differ, of real numbers the Euclidean distance.

    Args:
        categories: Letters of a sequence, K; 0 for real numbers.
        second: Take the second nearest, since the nearest one is the sample itself.
    """
    points, other = (_points(x, categories) for x in (sample, known))
    found = []
    for rows in points.split(ROWS):
        if categories:
            length = points.shape[1] // categories
            apart = 1 - rows @ other.T / length
        else:
            apart = torch.cdist(rows, other)
        found.append(apart.topk(1 + second, 1, largest=False).values[:, -1])
    return torch.cat(found)


def distance_to(known: Tensor, categories: int) -> Reward:
    """`nearest` as a penalty; see `penalised`."""

    def distance(sample: Sample, cond: Cond) -> PerSample:
        return nearest(sample, known, categories)

    return distance


def _points(sample: Sample, categories: int) -> Tensor:
    return (one_hot(sample, categories) if categories else sample).float().flatten(1)


def _in_deviations(guess: Prediction, score: PerSample) -> PerSample:
    return (score - guess.mean).abs() / guess.total


def _factor(wrong: PerSample) -> float:
    """What makes the intervals hold nine measurements in ten."""
    return (wrong.quantile(INTERVAL) / HALF_WIDTH).item()


def _judged(mean: PerSample, score: PerSample, covered: PerSample) -> Judgement:
    correlation = torch.corrcoef(torch.stack([mean.double(), score.double()]))[0, 1].item()
    error = (mean - score).square().mean().sqrt().item()
    units = (score.std() / mean.std()).item()
    slope_se = units * ((1 - correlation**2) / max(len(score) - 2, 1)) ** 0.5
    return Judgement(len(score), correlation, error, covered.mean().item(), units * correlation, slope_se)
