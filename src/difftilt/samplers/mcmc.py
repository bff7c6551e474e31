"""MCMC (Song et al., 2021): guided steps, each followed by moves that correct what it got wrong."""

from dataclasses import dataclass

from difftilt.guidance.corrected import Corrected, Corrector
from difftilt.guidance.flip_guided import FlipGuided, How
from difftilt.guidance.value_guided import At, ValueGuided
from difftilt.objective import Objective, Value
from difftilt.policy import Diffusion, Policy, reversing
from difftilt.samplers.base import Sampler, Steering
from difftilt.samplers.result import Steered, from_experience
from difftilt.settings import Count, Positive
from difftilt.shapes import Cond


@dataclass(frozen=True)
class MCMC(Sampler):
    """Guides a chain and makes corrector moves after each step.

    The KL is that of the longer chain to the pretrained one with the same moves, and grows with their number:
    an upper bound of that of the samples; their weights grow more uneven with it. A move costs the passes
    through the network that a step does.

    Args:
        corrector: `gibbs` noises x_{t-1} to x_t and takes the guided step again; `langevin`, for real
            states, follows the score of the tilted distribution with noise. See `Corrected`.
        corrections: Moves after each step, at least 1.
        step: Size of a Langevin move, in units of sigma_t^2, above 0.
        at: Where the gradient of the value is taken, as in value guidance of real states.
        how: How changes are valued, as in one-flip guidance of tokens.
    """

    corrector: Corrector = "gibbs"
    corrections: Count = 1
    step: Positive = 0.1
    at: At = "mean"
    how: How = "exact"

    def guide(self, policy: Policy, objective: Objective, value: Value, rows: int | None = None) -> Corrected:
        """The guided chain with its moves, a policy again; a value of tokens sees `rows` at a time."""
        process = _diffusion(objective.reference)
        if policy.symbols:
            flipped = FlipGuided(policy, objective, value, how=self.how, rows=rows)
            return Corrected(flipped, process, self.corrector, self.corrections, self.step)
        guided = ValueGuided(policy, objective, value, at=self.at)
        return Corrected(guided, process, self.corrector, self.corrections, self.step, guided.slope)

    def extend(self, objective: Objective) -> Objective:
        """The same problem where the pretrained chain makes the moves, too, which the KL is held to."""
        process = _diffusion(objective.reference)
        longer = Corrected(process, process, self.corrector, self.corrections, self.step)
        return Objective(objective.reward, longer, objective.alpha)

    def _draw(self, steering: Steering, cond: Cond) -> Steered:
        guided = self.guide(steering.policy, steering.objective, steering.value, steering.rows)
        return from_experience(self.extend(steering.objective).sample(guided, cond), steering.history)


def _diffusion(reference: Policy) -> Diffusion:
    return reversing(reference, "corrector moves need", "use smc or svdd")
