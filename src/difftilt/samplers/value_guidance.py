"""Value-gradient guidance (Uehara et al., 2024): each mean is moved by std^2 grad v / alpha.

With v = log p(y | x_t) of a classifier of noisy samples and alpha = 1 / scale this is classifier guidance;
with v = r(E[x_0 | x_t]) it is DPS.
"""

from dataclasses import dataclass

from difftilt.guidance.value_guided import At, ValueGuided
from difftilt.objective import Objective, Value
from difftilt.policy import Policy
from difftilt.samplers.base import Sampler, Steering
from difftilt.samplers.result import Steered, from_experience
from difftilt.settings import Positive
from difftilt.shapes import Cond


@dataclass(frozen=True)
class ValueGuidance(Sampler):
    """Samples a chain guided by the gradient of a value: the KL is exact, the distribution only to first
    order.

    Args:
        at: Where the gradient is taken: v_{t-1} at the `mean` of the step, or v_t at the `state` x_t (DPS).
        max_norm: Length in nats per unit that the gradient of v / alpha is clipped to, above 0, if given.
        start: Guide the draw of x_T, too.
    """

    at: At = "mean"
    max_norm: Positive | None = None
    start: bool = False

    def guide(self, policy: Policy, objective: Objective, value: Value) -> ValueGuided:
        """The guided chain, which is a policy again."""
        return ValueGuided(policy, objective, value, at=self.at, max_norm=self.max_norm, start=self.start)

    def _draw(self, steering: Steering, cond: Cond) -> Steered:
        guided = self.guide(steering.policy, steering.objective, steering.value)
        return from_experience(steering.objective.sample(guided, cond), steering.history)
