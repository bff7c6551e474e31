"""One-flip guidance of tokens (Nisonoff et al., 2024): each change is reweighed by what it gains in value."""

from dataclasses import dataclass

from difftilt.guidance.flip_guided import FlipGuided, How
from difftilt.objective import Objective, Value
from difftilt.policy import Policy
from difftilt.samplers.base import Sampler, Steering
from difftilt.samplers.result import Steered, from_experience
from difftilt.shapes import Cond


@dataclass(frozen=True)
class DiscreteGuidance(Sampler):
    """Samples a chain of tokens guided by the value of single changes: the KL is exact.

    The distribution is p_r where one position is drawn per step and the value is right.

    Args:
        how: `exact` asks the value of every change; `taylor` its gradient in one-hot vectors, one pass.
    """

    how: How = "exact"

    def guide(
        self, policy: Policy, objective: Objective, value: Value, rows: int | None = None
    ) -> FlipGuided:
        """The guided chain, which is a policy again; its value sees `rows` states at a time."""
        return FlipGuided(policy, objective, value, how=self.how, rows=rows)

    def _draw(self, steering: Steering, cond: Cond) -> Steered:
        guided = self.guide(steering.policy, steering.objective, steering.value, steering.rows)
        return from_experience(steering.objective.sample(guided, cond), steering.history)
