"""Soft values by brute force: the reference that other estimates are compared with."""

import torch

from difftilt.conditions import repeat, take
from difftilt.guidance.hard_wired import hard_wired
from difftilt.objective import Objective
from difftilt.policy import level
from difftilt.settings import Count, check_value
from difftilt.shapes import Cond, PerSample, State, Step
from difftilt.transition import tokens


class NestedMonteCarlo:
    """v_t(x_t) = alpha log (1/n) sum_i exp(r(x_0^i) / alpha), over n chains of the reference from x_t.

    The mean of exp(v / alpha) is exact for any n, so v itself lies below the soft value, the less the more
    chains there are. One value costs n t network passes and n reward calls.

    Args:
        objective: Its reference draws the chains, its reward scores where they end.
        rollouts: n, at least 1.
    """

    def __init__(self, objective: Objective, rollouts: int = 16):
        check_value("rollouts", rollouts, Count)
        self._objective, self._rollouts = objective, rollouts

    def __call__(self, x: State, t: Step, cond: Cond) -> PerSample:
        return hard_wired(self._objective, self._above, x, t, cond)

    @torch.no_grad()
    def _above(self, x: State, t: Step, cond: Cond) -> PerSample:
        objective, reference = self._objective, self._objective.reference
        x = (tokens(x) if reference.symbols else x).repeat_interleave(self._rollouts, 0)
        left, cond = t.repeat_interleave(self._rollouts), repeat(cond, self._rollouts)
        for now in range(int(t.max()), 0, -1):
            rows = (left >= now).nonzero()[:, 0]
            x[rows] = reference(x[rows], level(rows, now), take(cond, rows)).sample()
        reward = objective.reward(reference.decode(x, cond), cond).double().view(len(t), -1)
        valid = reward.isfinite()  # a reward may drop samples
        log_w = torch.where(valid, reward / objective.alpha, -torch.inf)
        return objective.alpha * (log_w.logsumexp(1) - valid.sum(1).log())
