"""What a sampler of the tilted distribution answers.

A population of particles that ends with the weight exp(log_z), of mean Z, spends at most

    KL(distribution of one of its particles || p_pre) <= E[r / alpha - log_z],

because the factor exp(log_z - r / alpha) turns the distribution of all that it draws into one under which
that particle has the distribution p_pre (Andrieu et al., 2010,
https://doi.org/10.1111/j.1467-9868.2009.00736.x). Hence alpha E[log_z] <= J <= alpha log Z: the sampler's J
is known from below, however it works.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from difftilt.conditions import concat, context, take
from difftilt.objective import Experience, outcome, standard_error
from difftilt.policy import Trajectory, side_by_side
from difftilt.samplers.particles import effective_share, log_mean_exp
from difftilt.shapes import Cond, Index, PerSample, Sample, Scalar, Some, State


@dataclass(frozen=True)
class Steered:
    """Samples that were steered towards the reward, what they earned and what they cost.

    Args:
        x_0: The last states, the samples of one population side by side.
        sample: decode(x_0), what rewards score.
        cond: The condition of each.
        reward: r(x_0).
        kl: Nats to the pretrained chain; the mean is what the sampler spends.
        kl_is_bound: Whether that is an upper bound, as it is where populations are weighed.
        population: Which population each sample comes from; samples of different ones are independent.
        log_z: One estimate of log Z per population, in nats; the mean of exp(log_z) is Z.
        ess: Share of the particles that equally weighted ones would need, in [0, 1]; where they are
            resampled, the least on the way, averaged over populations.
        alpha: The objective's weight of the KL.
        reward_calls: Samples scored, those in between included.
        network_calls: Samples through the denoisers, forward and backward.
        path: The chains that led to the samples, if they were asked for.
    """

    x_0: State
    sample: Sample
    cond: Cond
    reward: PerSample
    kl: PerSample
    population: Index
    log_z: Some
    ess: Scalar
    alpha: float
    kl_is_bound: bool
    reward_calls: int = 0
    network_calls: dict[str, int] = field(default_factory=dict)
    path: Trajectory | None = None

    def summary(self) -> dict[str, Any]:
        """Reward, KL in nats, J and log Z, each with its standard error, and the calls they cost."""
        reward, kl = (self.means(x) for x in (self.reward, self.kl))
        numbers = {name: x.item() for name, x in outcome(reward, kl, self.alpha).items()}
        log_z, log_z_se = self._log_z()
        return {
            "alpha": self.alpha,
            "samples": len(self.reward),
            **numbers,
            "kl_is_upper_bound": self.kl_is_bound,
            "log_z": log_z,
            "log_z_se": log_z_se,
            "ess": self.ess.item(),
            "reward_calls": self.reward_calls,
            "network_calls": self.network_calls,
        }

    def means(self, x: PerSample) -> Some:
        """The mean of each population: within one, samples share ancestors and are not independent."""
        total = torch.zeros_like(self.log_z, dtype=torch.float64).index_add(0, self.population, x.double())
        return total / torch.bincount(self.population, minlength=len(self.log_z))

    def _log_z(self) -> tuple[float, float]:
        """log Z, averaged over the different conditions, and its standard error."""
        populations = torch.arange(len(self.log_z), device=self.population.device)
        first_of = torch.searchsorted(self.population, populations)
        ids = context(take(self.cond, first_of)).to(self.log_z.device)
        found = [self.log_z[ids == k] for k in range(int(ids.max()) + 1)]
        means = [log_mean_exp(part[None])[0].item() for part in found]
        relative = [(part - mean).exp() for part, mean in zip(found, means, strict=True)]
        error = math.sqrt(sum(standard_error(w).item() ** 2 for w in relative)) / len(found)
        return sum(means) / len(means), error


def from_experience(seen: Experience, history: bool) -> Steered:
    """What a policy drew, every chain a population of its own with its importance weight."""
    log_w = seen.reward.double() / seen.alpha - seen.log_ratio.sum(0)
    path = seen.path
    return Steered(
        path.states[-1],
        path.sample,
        path.cond,
        seen.reward.double(),
        seen.kl.sum(0),
        torch.arange(len(log_w), device=log_w.device),
        log_w,
        effective_share(log_w[None])[0],
        seen.alpha,
        False,
        path=path if history else None,
    )


def joined(parts: Sequence[Steered], reward_calls: int, network_calls: dict[str, int]) -> Steered:
    """All samples of all parts, and what they cost together."""

    def cat(of: Callable[[Any], Any]) -> Any:
        return torch.cat([of(part) for part in parts])

    populations = [len(part.log_z) for part in parts]
    offsets = torch.tensor([0, *populations]).cumsum(0).tolist()
    numbered = zip(parts, offsets, strict=False)
    paths = [part.path for part in parts if part.path is not None]
    return Steered(
        cat(lambda part: part.x_0),
        cat(lambda part: part.sample),
        concat([part.cond for part in parts]),
        cat(lambda part: part.reward),
        cat(lambda part: part.kl),
        torch.cat([part.population + offset for part, offset in numbered]),
        cat(lambda part: part.log_z),
        torch.stack([part.ess * len(part.log_z) for part in parts]).sum() / sum(populations),
        parts[0].alpha,
        parts[0].kl_is_bound,
        reward_calls,
        network_calls,
        side_by_side(paths) if paths else None,
    )
