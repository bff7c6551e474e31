"""Weighted particles, in populations: one row of log-weights per population."""

import math
from typing import Literal

import torch

from difftilt.shapes import Index, LogWeights, Mask, Particles, PerSample, Some

Keep = Literal["all", "one"]  # of the particles of a population


class Populations:
    """The log-weights of particles while they are drawn, and what is known of Z.

    Args:
        count: Populations.
        particles: In each.

    Attributes:
        least: Lowest share of particles that carried the weight so far, per population.
    """

    def __init__(self, count: int, particles: int, device: torch.device):
        self._log_w = torch.zeros(count, particles, dtype=torch.float64, device=device)
        self._log_z, self.least = torch.zeros_like(self._log_w[:, 0]), torch.ones_like(self._log_w[:, 0])

    def weigh(self, growth: PerSample) -> None:
        """Multiplies every weight by exp(growth)."""
        self._log_w = self._log_w + growth.view_as(self._log_w)
        self.least = torch.minimum(self.least, effective_share(self._log_w))

    def resample(self, threshold: float) -> Index | None:
        """Which particles go on, if some population has a share below the threshold; others keep weights."""
        low = effective_share(self._log_w) < threshold
        if not low.any():
            return None
        index = resampled(self._log_w, low)
        self._log_z = self._log_z + torch.where(low, log_mean_exp(self._log_w), 0)
        self._log_w = torch.where(low[:, None], 0, self._log_w)
        return index

    def choose(self, keep: Keep) -> tuple[Index, Index]:
        """Which particles are the samples, without weights now, and the population of each."""
        log_w = alive(self._log_w)
        chosen = systematic(log_w) if keep == "all" else pick(log_w)
        every = torch.arange(len(log_w), device=log_w.device)
        return chosen, every.repeat_interleave(len(chosen) // len(log_w))

    @property
    def log_z(self) -> Some:
        """The estimates of log Z, from all weights so far."""
        return self._log_z + log_mean_exp(self._log_w)


def log_mean_exp(log_w: LogWeights) -> Some:
    """log of the mean weight of each population, without overflow."""
    return log_w.logsumexp(1) - math.log(log_w.shape[1])


def effective_share(log_w: LogWeights) -> Some:
    """The effective sample size of each population as a share of it, (sum w)^2 / (n sum w^2), in (0, 1].

    It is 0 where no particle has a weight.
    """
    log_ess = 2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1) - math.log(log_w.shape[1])
    return log_ess.exp().nan_to_num(0)


def alive(log_w: LogWeights) -> LogWeights:
    """The weights as they came.

    Raises:
        ValueError: If a population has no weight left.
    """
    dead = (log_w == -torch.inf).all(1) | log_w.isnan().any(1)
    if dead.any():
        raise ValueError(
            f"none of the {log_w.shape[1]} particles of population {int(dead.nonzero()[0])} has a weight:"
            " their rewards failed, or the proposal draws what the reference cannot; mend what is wrong, or"
            " take more particles"
        )
    return log_w


def systematic(log_w: LogWeights) -> Index:
    """Resamples every population with one random offset: a particle of weight w has n w +- 1 copies.

    Returns:
        Rows of the flattened table, as many as there are particles.

    Source:
        Kitagawa (1996). https://doi.org/10.1080/10618600.1996.10474692
    """
    populations, n = log_w.shape
    edges = log_w.softmax(1).cumsum(1)
    offset = torch.rand(populations, 1, dtype=log_w.dtype, device=log_w.device)
    points = (
        (torch.arange(n, device=log_w.device) + offset) / n * edges[:, -1:]
    )  # which is 1 but for rounding
    return _flat(torch.searchsorted(edges, points).clamp(max=n - 1), n)


def resampled(log_w: LogWeights, low: Mask) -> Index:
    """Which particles go on: those of some populations resampled, of the others every one."""
    every = torch.arange(log_w.numel(), device=log_w.device).view_as(log_w)
    return torch.where(low[:, None], systematic(alive(log_w)).view_as(log_w), every).flatten()


def pick(log_w: LogWeights) -> Index:
    """Draws one particle of each population by its weight; rows of the flattened table."""
    return _flat(torch.multinomial(log_w.softmax(1), 1), log_w.shape[1])


def _flat(chosen: Particles, n: int) -> Index:
    """Rows of the flattened table of n particles per population."""
    return (chosen + n * torch.arange(len(chosen), device=chosen.device)[:, None]).flatten()
