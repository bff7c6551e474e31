"""A chain whose steps are moved along the gradient of a value (Uehara et al., 2024): a policy again."""

from typing import Literal

import torch

from difftilt.guidance.hard_wired import hard_wired
from difftilt.objective import Objective, Value
from difftilt.policy import Policy, Wrapped, level
from difftilt.shapes import Cond, PerSample, Real, State, Step
from difftilt.transition import Gaussian, Transition, gaussian

At = Literal["mean", "state"]


class ValueGuided(Wrapped):
    """A Gaussian chain whose steps draw x_{t-1} ~ N(mean + std^2 / alpha grad v_{t-1}(mean), std^2).

    It is the optimal step p(x_{t-1} | x_t) exp(v_{t-1}(x_{t-1}) / alpha) to first order in std, and is exact
    where v is linear. No gradient flows back through the guidance.

    Args:
        policy: The chain that is guided, whose weights it uses.
        objective: Its reward is v_0, its alpha the temperature.
        value: An estimate of the soft value at t > 0, differentiable in x.
        at: Where the gradient is taken: v_{t-1} at the `mean`, or v_t at the `state` x_t, as DPS does.
        max_norm: Length in nats per unit that the gradient of v / alpha is clipped to, if given.
        start: Guide the draw of x_T, too.

    Source:
        Uehara et al. (2024), Section 6.2. https://arxiv.org/abs/2407.13734
        Chung et al. (2023). https://arxiv.org/abs/2209.14687
    """

    def __init__(
        self,
        policy: Policy,
        objective: Objective,
        value: Value,
        *,
        at: At = "mean",
        max_norm: float | None = None,
        start: bool = False,
    ):
        super().__init__(policy)
        self.objective, self.value, self.at, self.max_norm, self.start = objective, value, at, max_norm, start

    def initial(self, cond: Cond) -> Gaussian:
        law = _gaussian(self.base.initial(cond))
        return self._moved(law, law.mean, level(law.mean, self.steps), cond) if self.start else law

    def forward(self, x: State, t: Step, cond: Cond) -> Gaussian:
        step = _gaussian(self.base(x, t, cond))
        return self._moved(step, *((x, t) if self.at == "state" else (step.mean, t - 1)), cond)

    def _moved(self, law: Gaussian, x: State, t: Step, cond: Cond) -> Gaussian:
        slope = self.slope(x, t, cond)
        return Gaussian(law.mean + law.std**2 * slope, law.std)

    def slope(self, x: State, t: Step, cond: Cond) -> Real:
        """grad v_t(x) / alpha."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = hard_wired(self.objective, self.value, x, t, cond)
            _check(v, self.objective.reward.name)
            slope = torch.autograd.grad(v.sum(), x)[0] / self.objective.alpha
        if self.max_norm is None:
            return slope
        norm = slope.flatten(1).norm(dim=1).view(-1, *(1,) * (x.ndim - 1))
        return slope * (self.max_norm / norm.clamp(min=self.max_norm))


def _gaussian(step: Transition) -> Gaussian:
    need = "guidance by a gradient needs Gaussian steps"
    return gaussian(step, need, "for tokens use one-flip guidance, svdd or smc")


def _check(v: PerSample, name: str) -> None:
    if not v.requires_grad:
        raise ValueError(
            f"guidance by a gradient needs a value with one, but the value of reward '{name}' detaches its"
            " input; compute it with torch operations on the sample, or use svdd or smc, which need none"
        )
