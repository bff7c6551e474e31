"""How far two sets of samples are apart, and how diverse one is, each with its standard error."""

from typing import NamedTuple

import torch
from torch import Tensor

from difftilt.shapes import Samples


class Estimate(NamedTuple):
    """A number and its standard error."""

    value: float
    se: float


def two_sample(x: Samples, y: Samples) -> Estimate:
    """The energy distance 2 E|X - Y| - E|X - X'| - E|Y - Y'|, unbiased, with its jackknife error.

    It is 0 exactly if both laws are equal, so an estimate for equal laws scatters around 0 and may be
    negative. It is also the squared maximum mean discrepancy (MMD) of the kernel -|x - y|.

    Args:
        x: Samples or features, 3 or more.
        y: As `x`; their number may differ.
    Source:
        Szekely and Rizzo (2013); Sejdinovic et al. (2013). https://arxiv.org/abs/1207.6076
    """
    at_least(3, x, y)
    between, within_x, within_y = _distances(x, y), _distances(x, x), _distances(y, y)
    n, m = between.shape
    cross, mean_x, mean_y = between.sum() / (n * m), _mean_pair(within_x), _mean_pair(within_y)
    value = 2 * cross - mean_x - mean_y
    without_x = 2 * _cross_without(between) - _pairs_without(within_x) - mean_y
    without_y = 2 * _cross_without(between.T) - mean_x - _pairs_without(within_y)
    return Estimate(value.item(), (jackknife(without_x) + jackknife(without_y)).sqrt().item())


def diversity(x: Samples) -> Estimate:
    """The mean distance of two samples, with its jackknife error. Collapse drives it to 0."""
    at_least(3, x)
    within = _distances(x, x)
    return Estimate(_mean_pair(within).item(), jackknife(_pairs_without(within)).sqrt().item())


def frechet(x: Samples, y: Samples, resamples: int = 100) -> Estimate:
    """The Frechet distance of Gaussian fits, |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)).

    It is biased upwards, about as dimension^2 / samples, and never 0 for finite sets: compare only values
    from sets of equal sizes, and give that of two real sets beside it.

    Args:
        x: Features, more samples than dimensions.
        y: As `x`.
        resamples: Bootstrap samples behind the standard error, at least 2; they are drawn with torch's
            global generator.
    Source:
        Heusel et al. (2017). https://arxiv.org/abs/1706.08500
    """
    x, y = x.flatten(1).double(), y.flatten(1).double()
    at_least(x.shape[1] + 1, x, y)
    values = [_frechet(_resampled(x), _resampled(y)) for _ in range(resamples)]
    return Estimate(_frechet(x, y).item(), torch.stack(values).std().item())


def _frechet(x: Tensor, y: Tensor) -> Tensor:
    cov_x, cov_y = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(cov_x)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_y @ root).clamp(min=0).sqrt().sum()
    return (x.mean(0) - y.mean(0)).square().sum() + cov_x.trace() + cov_y.trace() - 2 * cross


def _resampled(x: Tensor) -> Tensor:
    return x[torch.randint(len(x), (len(x),))]


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # the default of cdist for large sets takes differences of squares, and |x - x| comes out above 0
    return torch.cdist(
        x.flatten(1).double(), y.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist"
    )


def _mean_pair(within: Tensor) -> Tensor:
    return within.sum() / (len(within) * (len(within) - 1))


def _pairs_without(within: Tensor) -> Tensor:
    """The mean over pairs when each sample in turn is left out."""
    n = len(within)
    return (within.sum() - 2 * within.sum(1)) / ((n - 1) * (n - 2))


def _cross_without(between: Tensor) -> Tensor:
    """The mean over rows and columns when each row in turn is left out."""
    n, m = between.shape
    return (between.sum() - between.sum(1)) / ((n - 1) * m)


def jackknife(without: Tensor) -> Tensor:
    """Squared standard error from the estimates that leave one sample out."""
    return without.var(correction=0) * (len(without) - 1)


def at_least(count: int, *sets: Tensor) -> None:
    """Refuses sets of fewer samples."""
    for samples in sets:
        if len(samples) < count:
            raise ValueError(f"{count} or more samples are needed here, but {len(samples)} came; draw more")
