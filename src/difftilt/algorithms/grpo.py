"""Group relative policy optimization (Shao et al., 2024) of a diffusion chain.

https://arxiv.org/abs/2402.03300
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import annotated_types as at
import torch

from difftilt import advantages
from difftilt.objective import Algorithm, Loss, Objective
from difftilt.policy import Policy, context, decide, repeat
from difftilt.settings import Count
from difftilt.shapes import Cond


@dataclass(eq=False)
class GRPO(Algorithm):
    """Every context is sampled `group_size` times and each sample is compared with its own group:

        L = -E sum_t min(w_t A, clip(w_t, 1 - clip, 1 + clip) A) + alpha sum_t KL_t,
        A = (r - mean of the group) / deviation of the group.

    The KL is the closed form in nats, divided by the same deviation, so that alpha keeps its meaning.

    Args:
        group_size: Samples per context, at least 2.
        clip: Range of the ratio, in (0, 1).
        clip_per_dim: Clip the ratio per dimension instead, w^(1 / D).
        epochs: Passes over the rows of a round, at least 1.
        minibatches: Gradient steps per pass over shuffled (t, sample) rows, at least 1.
    """

    group_size: Annotated[int, at.Ge(2)] = 16
    clip: Annotated[float, at.Interval(gt=0, lt=1)] = 0.2
    clip_per_dim: bool = False
    epochs: Count = 2
    minibatches: Count = 4

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        seen = objective.sample(policy, repeat(cond, self.group_size))
        path, alpha = seen.path, objective.alpha
        ids = context(path.cond)
        advantage = advantages.group(seen.reward.expand_as(seen.kl), ids).flatten()
        spread = advantages.spread(seen.reward, ids).expand_as(seen.kl).flatten()
        dimensions = path.states[0, 0].numel() if self.clip_per_dim else 1

        for _ in range(self.epochs):
            for index in path.minibatches(self.minibatches):
                rows = path.transitions(index)
                step = decide(policy, rows)
                with torch.no_grad():
                    base = decide(objective.reference, rows)
                log_w = step.log_prob(rows.x_next) - path.log_prob.flatten()[index]
                gain = advantages.clipped_surrogate(log_w, advantage[index], self.clip, dimensions)
                loss = alpha * step.kl(base) / spread[index] - gain
                yield Loss(loss.mean() * len(path.log_prob), seen.stats())
