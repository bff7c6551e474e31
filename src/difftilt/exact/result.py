"""What exact references answer, and how they ask for rewards."""

from dataclasses import dataclass

from difftilt.conditions import repeat, unconditional
from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.policy import Policy
from difftilt.shapes import Cond, PerSample, Points, Scalar, State


@dataclass(frozen=True)
class Evaluation:
    """What a policy earns and costs, exactly.

    Args:
        reward: E[r(x_0)].
        kl: KL(policy || reference) of whole chains, in nats.
        alpha: Weight of the KL.
    """

    reward: Scalar
    kl: Scalar
    alpha: float

    @property
    def objective(self) -> Scalar:
        """J = reward - alpha kl."""
        return self.reward - self.alpha * self.kl


@dataclass(frozen=True)
class TableEvaluation(Evaluation):
    """What a policy or a sampler earns and costs, where all x_0 can be listed.

    Args:
        law: Probability under x_0 of every sequence, the last position varying fastest, or of every
            point of an axis.
    """

    law: Points


@dataclass(frozen=True)
class Tilted:
    """The optimum over all policies.

    Args:
        optimum: max J = alpha log Z.
        reward: E[r] under `law`.
        kl: KL of the optimum from the reference, in nats.
        law: p_r(x_0) = p_pre exp(r / alpha) / Z, as probabilities of all x_0.
    """

    optimum: Scalar
    reward: Scalar
    kl: Scalar
    law: Points


def score(objective: Objective, policy: Policy, x_0: State, cond: Cond | None = None) -> PerSample:
    """The reward of states in float64, given one condition, without adding to the count of reward calls."""
    guard, asked = Guard(objective.reward.reward, objective.reward.name), given(cond, len(x_0))
    return guard(policy.decode(x_0, asked), asked).double()


def given(cond: Cond | None, count: int) -> Cond:
    """One condition, or none, for `count` samples."""
    return repeat(cond or unconditional(1), count)
