"""SMC (Wu et al., 2023; Singhal et al., 2025): particles, resampled towards the reward as they are drawn."""

from dataclasses import dataclass
from typing import Literal

import torch

from difftilt.conditions import batch_size, repeat, take
from difftilt.samplers.base import Lineage, Sampler, Steering
from difftilt.samplers.particles import Keep, Populations
from difftilt.samplers.result import Steered
from difftilt.settings import Count, Unit
from difftilt.shapes import Cond, Index, PerSample


@dataclass(frozen=True)
class SMC(Sampler):
    """Moves a population by the chain and weighs each particle at each step by a potential G,

        w <- w G_t(x_t, ..., x_T) p_pre(x_t | x_{t+1}) / p(x_t | x_{t+1}),   prod_t G_t = exp(r(x_0) / alpha),

    and resamples where the weights have become uneven. Weights are carried where it does not resample, so
    that the estimate of Z is unbiased whatever the value; with a perfect value there is nothing to correct.

    Args:
        particles: Per population, at least 1. The distribution of a particle tends to p_r as they grow.
        threshold: Resample where fewer than this share of the particles carry the weight, in [0, 1]: 1
            resamples at every step, 0 never, which is importance sampling.
        potential: What log G is before the end, of v_t / alpha: its `difference` from the step before, the
            `max` so far, or the `sum` so far. The last step corrects the product.
        keep: `all` particles, which share ancestors, or `one` of each population, drawn by its weight.

    Source:
        Wu et al. (2023), Algorithm 1. https://arxiv.org/abs/2306.17775
        Singhal et al. (2025), Section 3. https://arxiv.org/abs/2501.06848
    """

    particles: Count = 16
    threshold: Unit = 0.5
    potential: Literal["difference", "max", "sum"] = "difference"
    keep: Keep = "all"

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
        product = _Product(self.potential, torch.zeros(len(d.x), dtype=torch.float64, device=d.x.device))
        for t in range(steering.policy.steps, 0, -1):
            x = d.x_next  # x_t
            line.append(d, x)
            weights.weigh(
                product.grow(steering.potential(x, t, cond)) + steering.corrections(d, [x], cond)[0]
            )
            if (index := weights.resample(self.threshold)) is not None:
                product.select(index)
                line.select(index)
            d = steering.advance(x, t, cond, index)
        line.append(d, d.x_next)
        score = steering.potential(d.x_next, 0, cond)
        weights.weigh(product.end(score) + steering.corrections(d, [d.x_next], cond)[0])
        chosen, population = weights.choose(self.keep)
        line.select(chosen)
        reward = score[chosen] * steering.objective.alpha
        return steering.answer(
            d.x_next[chosen], take(cond, chosen), reward, population, weights.log_z, weights.least, line
        )


class _Product:
    """log of the product of each particle's potentials so far."""

    def __init__(self, kind: str, zero: PerSample):
        self._kind, self._total = kind, zero
        self._running = torch.full_like(zero, -torch.inf) if kind == "max" else zero

    def end(self, score: PerSample) -> PerSample:
        """The last log G, given r / alpha, which corrects the product; -inf where the reward failed."""
        return (score - self._total).nan_to_num(-torch.inf, -torch.inf, -torch.inf)

    def grow(self, score: PerSample) -> PerSample:
        """The next log G, given v_t / alpha. A reward that failed on the way changes nothing yet."""
        valid, before = score.isfinite(), self._total
        if self._kind == "difference":
            total = score
        else:
            of = torch.maximum if self._kind == "max" else torch.add
            self._running = torch.where(valid, of(self._running, score), self._running)
            total = before + self._running
        self._total = torch.where(valid, total, before)
        return self._total - before

    def select(self, index: Index) -> None:
        self._total, self._running = self._total[index], self._running[index]
