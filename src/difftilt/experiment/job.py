"""A recipe's product: everything that fine-tuning, sampling and reporting need."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difftilt.conditions import unconditional
from difftilt.evaluation.evaluate import Evaluation
from difftilt.guard import Reward
from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy
from difftilt.shapes import Cond, State
from difftilt.training.settings import Training


@dataclass(frozen=True)
class Job:
    """What a recipe builds from its settings.

    Args:
        policy: The chain to tune; a copy of, or adapters on, the objective's reference.
        target_kl: KL in nats that alpha is moved to reach, if given.
        cond: Maps a number of samples to their conditions.
        gold: Rewards that training never sees, by name.
        draw: Writes samples to files that begin with a path, in the domain's own format.
        spell: Each sample as text, for the table of samples.
        diversity: A number that falls when samples become alike.
        distances: Two-sample distances of interest, by name, each with its error; and what they mean.
        exact: Numbers of a policy that need no samples, by name; and what they mean.
        optimum: The same numbers of the best possible law.
    """

    policy: Policy
    objective: Objective
    algorithm: Algorithm
    training: Training
    target_kl: float | None = None
    cond: Callable[[int], Cond] = unconditional
    gold: Mapping[str, Reward] = field(default_factory=dict)
    draw: Callable[[Evaluation, Path], None] = lambda seen, path: None
    spell: Callable[[State], list[str]] | None = None
    diversity: Callable[[State], float] | None = None
    distances: Callable[[State], dict[str, tuple[float, float]]] | None = None
    distances_note: str = ""
    exact: Callable[[Policy], Mapping[str, float]] | None = None
    optimum: Callable[[], Mapping[str, float]] | None = None
    exact_note: str = ""
