"""Best-of-N (Stiennon et al., 2020): of n whole samples the one with the highest reward is kept."""

from dataclasses import dataclass

import torch

from difftilt.conditions import batch_size, repeat, take
from difftilt.samplers.base import Lineage, Sampler, Steering
from difftilt.samplers.best_of import kl_of_best
from difftilt.samplers.particles import alive, effective_share, log_mean_exp
from difftilt.samplers.result import Steered
from difftilt.settings import Count
from difftilt.shapes import Cond


@dataclass(frozen=True)
class BestOfN(Sampler):
    """Keeps the sample with the highest reward among n of one condition; it asks no value and no gradient.

    Its distribution is not p_r: it does not know alpha. Its KL is log n - (n - 1) / n if rewards have no
    ties, and at most that otherwise; a proposal adds log p / p_pre of the chain that is kept. The weights
    exp(r / alpha) p_pre / p of all n estimate Z.

    Args:
        n: Samples per condition, at least 1, each of which is scored.

    Source:
        Beirami et al. (2024), for the KL. https://arxiv.org/abs/2401.01879
    """

    n: Count = 16

    @property
    def population(self) -> int:
        return self.n

    def _draw(self, steering: Steering, cond: Cond) -> Steered:
        populations = batch_size(cond)
        cond = repeat(cond, self.n)
        d, line = steering.first(cond), Lineage(steering.history)
        ratio = torch.zeros(len(d.x), dtype=torch.float64, device=d.x.device)  # log p_pre - log p of the path
        for t in range(steering.policy.steps, -1, -1):
            x = d.x_next
            line.append(d, x)
            ratio = ratio + steering.corrections(d, [x], cond)[0]
            if t > 0:
                d = steering.advance(x, t, cond)
        x = d.x_next
        score = steering.potential(x, 0, cond).nan_to_num(-torch.inf, -torch.inf, -torch.inf)
        scores = alive(score.view(populations, self.n))
        log_w = alive((score + ratio).view(populations, self.n))
        population = torch.arange(populations, device=x.device)
        best = scores.argmax(1) + self.n * population
        line.select(best)
        reward = score[best] * steering.objective.alpha
        kl = kl_of_best(self.n) - ratio[best]
        log_z, ess, cond = log_mean_exp(log_w), effective_share(log_w), take(cond, best)
        return steering.answer(x[best], cond, reward, population, log_z, ess, line, kl, kl_is_bound=False)
