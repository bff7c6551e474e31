"""SVDD (Li et al., 2024): of several candidates for each next state, one is kept by its value."""

from dataclasses import dataclass

import torch

from difftilt.conditions import batch_size, repeat, take
from difftilt.policy import Decision
from difftilt.samplers.base import Lineage, Sampler, Steering
from difftilt.samplers.best_of import kl_of_best
from difftilt.samplers.particles import Keep, Populations, effective_share, log_mean_exp, pick
from difftilt.samplers.result import Steered
from difftilt.settings import Count, Unit
from difftilt.shapes import Cond, PerSample, State


@dataclass(frozen=True)
class SVDD(Sampler):
    """Draws M candidates x^1, ..., x^M of each next state from one pass of the network, and keeps one by

    w_m = exp(v_{t-1}(x^m) / alpha) p_pre(x^m | x_t) / p(x^m | x_t),   v_0 = r.

    As M grows each step tends to the pretrained one tilted by the value, which is optimal if the value is
    right. What it misses is weighed: W <- W mean_m w_m / exp(v_t(x_t) / alpha) makes the mean of W equal Z
    for every M and every value, as in nested SMC. x_T is chosen in the same way.

    Args:
        candidates: M, at least 1, of each state, x_T included. The last ones cost M reward calls.
        particles: Per population, at least 1. Those of several are resampled by W, which is SVDD-R.
        threshold: Resample where fewer than this share of the particles carry the weight, in [0, 1].
        greedy: Keep the best candidate, the limit of small alpha. This has no weights: log Z is NaN, and the
            KL is a bound, log M - (M - 1) / M per decision. For single particles.
        keep: `all` particles, which share ancestors, or `one` of each population, drawn by its weight.

    Source:
        Li et al. (2024), Algorithm 1. https://arxiv.org/abs/2408.08252
        Naesseth et al. (2015), for the weights. https://arxiv.org/abs/1502.02536
        Beirami et al. (2024), Theorem 3.1, for the bound. https://arxiv.org/abs/2401.01879
    """

    candidates: Count = 8
    particles: Count = 1
    threshold: Unit = 0.5
    greedy: bool = False
    keep: Keep = "all"

    def __post_init__(self):
        super().__post_init__()
        if self.greedy and self.particles > 1:
            raise ValueError(
                f"greedy choices have no weights to resample {self.particles} particles by; take particles=1"
            )

    @property
    def population(self) -> int:
        return self.particles

    @property
    def kept(self) -> int:
        return self.particles if self.keep == "all" else 1

    def _draw(self, steering: Steering, cond: Cond) -> Steered:
        populations, cond = batch_size(cond), repeat(cond, self.particles)
        d, line = steering.first(cond), Lineage(steering.history)
        weights = Populations(populations, self.particles, d.x.device)
        x = d.x_next
        score = ratio = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for t in range(steering.policy.steps, -1, -1):
            kept = self._keep(steering, d, t, cond, score)
            x, score, ratio = kept.x, kept.score, ratio + kept.correction
            line.append(d, x)
            weights.weigh(kept.growth)
            if t == 0:
                break
            if self.particles > 1 and (index := weights.resample(self.threshold)) is not None:
                x, score = x[index], score[index]
                line.select(index)
            d = steering.advance(x, t, cond)
        chosen, population = weights.choose(self.keep)
        line.select(chosen)
        log_z, least, kl = weights.log_z, weights.least, None
        if self.particles == 1:
            least = effective_share(log_z[None]).expand_as(log_z)
        if self.greedy:
            kl = (steering.policy.steps + 1) * kl_of_best(self.candidates) - ratio
            log_z, least = torch.full_like(log_z, torch.nan), torch.full_like(least, torch.nan)
        reward = score[chosen] * steering.objective.alpha
        return steering.answer(x[chosen], take(cond, chosen), reward, population, log_z, least, line, kl)

    def _keep(self, steering: Steering, d: Decision, t: int, cond: Cond, before: PerSample) -> "_Kept":
        """One of M draws of a decision for each row, where the states before had the value `before`."""
        count = self.candidates
        draws = [d.x_next, *(d.step.sample() for _ in range(count - 1))]
        x = torch.stack(draws, 1).flatten(0, 1)
        correction = torch.stack(steering.corrections(d, draws, cond), 1)
        score = steering.potential(x, t, repeat(cond, count)).view_as(correction)
        # what failed on the way has its parent's value, and has no weight at the end
        score = torch.where(score.isfinite(), score, before[:, None] if t > 0 else -torch.inf)
        log_g = score + correction
        dead = (log_g == -torch.inf).all(1, keepdim=True)
        chosen = pick(torch.where(dead, 0, log_g))
        if self.greedy:
            chosen = score.argmax(1) + count * torch.arange(len(score), device=score.device)
        growth = log_mean_exp(log_g) - before
        return _Kept(x[chosen], score.flatten()[chosen], growth, correction.flatten()[chosen])


@dataclass(frozen=True)
class _Kept:
    """The candidate that each particle keeps.

    Args:
        score: v / alpha.
        growth: log of the mean weight of all candidates.
        correction: log p_pre - log p.
    """

    x: State
    score: PerSample
    growth: PerSample
    correction: PerSample
