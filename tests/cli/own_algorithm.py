"""REINFORCE with the mean of the other samples as its baseline."""

from dataclasses import dataclass

from difftilt import Algorithm, Loss, path_log_prob
from difftilt.algorithms.advantages import leave_one_out
from difftilt.conditions import context
from difftilt.objective import to_go


@dataclass(eq=False)
class Reinforce(Algorithm):
    """L = -E sum_t A_t log p(x_{t-1} | x_t).

    Args:
        scale: Of the loss.
    """

    scale: float = 1.0

    def losses(self, policy, objective, cond):
        seen = objective.sample(policy, cond)
        returns = seen.reward - objective.alpha * to_go(seen.log_ratio)
        advantage = leave_one_out(returns, context(seen.path.cond))
        loss = -(advantage * path_log_prob(policy, seen.path)).sum(0).mean()
        yield Loss(self.scale * loss, seen.stats())
