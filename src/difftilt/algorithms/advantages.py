"""From returns to advantages, and from advantages to a loss.

Where several processes share a run, batches, groups and contexts are those of all of them.
"""

import math

import torch
from torch import Tensor

from difftilt.data.across import gathered
from difftilt.shapes import Index, PerSample, PerStep, Scalar, Statistic

EPS = 1e-6
LEAST = 0.25  # of the usual deviation: no group counts more than four usual ones


def centre(returns: PerStep) -> PerStep:
    """Less the batch mean of each decision."""
    return returns - gathered(returns).mean(1, keepdim=True)


def group(returns: PerStep, ids: Index) -> PerStep:
    """Less the mean of each sample's group (GRPO). A group of one gets zero.

    Args:
        ids: Group of each sample.
    """
    return returns - group_mean(returns, ids)


def group_mean(x: Statistic, ids: Index) -> Statistic:
    """The mean of each sample's group."""
    every = gathered(x)
    members = _members(gathered(ids), every)
    return (every @ members.T / members.sum(1))[..., ids]


def spread(returns: Statistic, ids: Index) -> Statistic:
    """The standard deviation within each sample's group, kept above zero."""
    deviation = returns - group_mean(returns, ids)  # first, or large means cost all digits
    return group_mean(deviation.square(), ids).sqrt() + EPS


def group_scale(returns: Statistic, ids: Index, alpha: float) -> Statistic:
    """What divides the loss of each sample's group: its deviation, but at least a quarter of the usual one.

    Else a group of nearly equal returns, or one of a single member, would outweigh all others.

    Args:
        ids: Group of each sample.
        alpha: Returns per nat.
    """
    usual = root_mean_square(returns - group_mean(returns, ids))
    return floor(spread(returns, ids).maximum(LEAST * usual), alpha)


def root_mean_square(x: Tensor) -> Tensor:
    """Over the samples, the last dimension, which stays."""
    return gathered(x).square().mean(-1, keepdim=True).sqrt()


def floor(scale: Tensor, alpha: float) -> Tensor:
    """A scale of returns that can divide a loss: at least what a tenth of a nat is worth.

    Returns that differ by less say nothing, and divided by their deviation the KL would drown all else.
    """
    return scale.clamp(min=0.1 * alpha)


def leave_one_out(returns: PerStep, ids: Index) -> PerStep:
    """Less the mean of the *other* members of each sample's group (RLOO): the baseline stays unbiased.

    Args:
        ids: Group of each sample. A group of one gets zero.
    """
    count = _members(gathered(ids), returns).sum(1)[ids]
    factor = torch.where(count > 1, count / (count - 1).clamp(min=1), 0)
    return group(returns, ids) * factor


def group_softmax(log_w: PerSample, ids: Index) -> PerSample:
    """exp(log_w) of mean 1 within each sample's group, which cannot overflow."""
    every = gathered(log_w)
    members = _members(gathered(ids), every) > 0
    total = torch.where(members, every, -torch.inf).logsumexp(1)
    return (log_w - total[ids]).exp() * members.sum(1)[ids]


def clipped_surrogate(log_w: PerSample, advantage: PerSample, clip: float, dimensions: int = 1) -> PerSample:
    """min(w A, clip(w, 1 - clip, 1 + clip) A), of Schulman et al. (2017), Eq. 7; to be ascended.

    Args:
        log_w: Log-ratio of the new to the old policy, summed over the event.
        clip: Range of the ratio, in (0, 1).
        dimensions: Above 1, the clip is on the ratio *per dimension*, w^(1 / dimensions): the range that
            codes which average their log-probabilities mean.
    """
    low, high = dimensions * torch.log1p(torch.tensor([-clip, clip], dtype=log_w.dtype)).to(log_w.device)
    return torch.minimum(log_w.exp() * advantage, log_w.clamp(low, high).exp() * advantage)


def clipped(log_w: PerSample, clip: float, dimensions: int = 1) -> Scalar:
    """The share of ratios outside of `clipped_surrogate`'s range, whichever way the advantage points."""
    return (log_w.detach().abs() > dimensions * math.log1p(clip)).double().mean()


def _members(ids: Index, like: Tensor) -> Tensor:
    """One row per group, one column per sample, 1 where the sample belongs to the group."""
    return torch.eye(int(ids.max()) + 1, dtype=like.dtype, device=like.device)[:, ids]
