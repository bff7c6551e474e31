"""J*, the best possible J: exact where a run knows it, else estimated from the pretrained model's rewards."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from difftilt.evaluation.estimate import Change, Estimate
from difftilt.evaluation.run_folder import Run, as_float
from difftilt.objective import standard_error
from difftilt.samplers.particles import effective_share, log_mean_exp

MIN_EFFECTIVE = 10  # effective samples below which an estimate is not to be trusted
ROUNDING = 1e-6  # share of J* by which an exact J may be above it


@dataclass(frozen=True)
class Optimum:
    """The J of the tilted distribution, J* = alpha log E_pre[exp(r / alpha)], which no policy exceeds.

    Args:
        objective: J*, without an error if it is exact.
        exact: Whether it is known without sampling.
        covariance: Of its estimate with that of J before tuning, if both are from the same samples.
    """

    objective: Estimate
    exact: bool = False
    covariance: float = 0.0

    @property
    def origin(self) -> str:
        """Where the number comes from, in words."""
        return "known exactly" if self.exact else "estimated from the pretrained samples"

    def exceeded_by(self, objective: Estimate) -> bool:
        """Whether a J is clearly above J*, so that one of the two must be wrong."""
        above = objective - self.objective
        return above.direction > 0 and above.value > ROUNDING * abs(self.objective.value)

    def way(self, objective: Change) -> Estimate | None:
        """The share of the way from J before tuning to J*, (J - J_pre) / (J* - J_pre), with its error.

        The error is that of first order in the errors of all three; None if J* is not above J before.
        """
        before, after, best = objective.before, objective.after, self.objective
        whole = best.value - before.value
        if not whole > 0:
            return None
        share = (after.value - before.value) / whole
        alone = math.hypot(after.se, (1 - share) * before.se, share * best.se)
        variance = alone * alone + 2 * share * (1 - share) * self.covariance
        return Estimate(share, math.sqrt(max(variance, 0)) / whole)


def optimum(run: Run) -> Optimum | None:
    """J* of a run's problem at the alpha in force: there is one for the whole page."""
    for row in (run.summary, run.before):
        best = (row.get("optimum") or {}).get("J")
        if best is not None and row.get("alpha") == run.alpha:
            return Optimum(Estimate(as_float(best), 0.0), exact=True)
    rewards = [r for r in run.samples["before"].get("reward", []) if math.isfinite(r)]
    return ceiling(rewards, run.alpha) if run.alpha else None


def ceiling(rewards: Sequence[float], alpha: float) -> Optimum | None:
    """J* from the rewards of the pretrained model's samples.

    None if fewer than ten samples carry the mean, where it would be a guess.
    """
    r = torch.tensor(rewards, dtype=torch.float64)
    log_w = (r / alpha)[None]
    if not len(r) or not effective_share(log_w).item() * len(r) >= MIN_EFFECTIVE:
        return None
    log_z = log_mean_exp(log_w)
    weight = (log_w - log_z)[0].exp()
    error = alpha * standard_error(weight).item()
    covariance = alpha * ((weight - 1) * (r - r.mean())).mean().item() / len(r)
    return Optimum(Estimate(alpha * log_z.item(), error), covariance=covariance)
