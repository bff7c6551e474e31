"""A recipe's product: everything that fine-tuning, sampling and reporting need."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import annotated_types as at

from difftilt.conditions import unconditional
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.guard import OnError, Reward
from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy
from difftilt.settings import Count, Natural, Positive, check_settings
from difftilt.shapes import Cond, State

Schedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class Training:
    """How long and how fast to train; the same for every recipe and algorithm.

    Args:
        rounds: Rounds of sampling and learning, at least 1.
        batch: Conditions per round over all processes, at least 1.
        learning_rate: Adam's step size for the policy, above 0.
        own_learning_rate: The same for an algorithm's own networks, such as a critic, above 0.
        schedule: How the learning rate falls to zero over the run.
        accumulate: Losses per gradient step, at least 1.
        max_norm: Length that the gradient is clipped to, above 0.
        ema_decay: Average the weights over steps with this decay, in [0, 1), for samples; 0 is off.
        save_every: Rounds between checkpoints, at least 1.
        evaluate: Samples to judge the model by, before and after, at least 2.
        check_start: Starts x_T, at least 3, from which to measure before training what a frozen law of x_T
            costs, by 16 samples each; 0 is off.
        mixed_precision: Precision of the network's passes; densities stay in float32 or better.
        on_error: What a sample without a valid reward does: `stop` the run, or be dropped and counted.
        cache: Answer a repeated sample's reward from memory; right for a deterministic black box only.
        threads: CPU threads of torch, at least 1. Small networks are often fastest with one, and a second one
            costs more than it brings whenever the other core is busy.
        seed: Random seed, at least 0.
    """

    rounds: Count = 40
    batch: Count = 256
    learning_rate: Positive = 1e-3
    own_learning_rate: Positive = 3e-3
    schedule: Schedule = "constant"
    accumulate: Count = 1
    max_norm: Positive = 1.0
    ema_decay: Annotated[float, at.Interval(ge=0, lt=1)] = 0.0
    save_every: Count = 1
    evaluate: Annotated[int, at.Ge(2)] = 512
    check_start: Natural = 0
    mixed_precision: Literal["no", "bf16"] = "no"
    on_error: OnError = "stop"
    cache: bool = False
    threads: Count = 1
    seed: Natural = 0

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True)
class Job:
    """What a recipe builds from its settings.

    Args:
        policy: The chain to tune; a copy of, or adapters on, the objective's reference.
        target_kl: KL in nats that alpha is moved to reach, if given.
        cond: Maps a number of samples to their conditions.
        gold: Rewards that training never sees, by name.
        proxy_for: Names of the gold rewards that the reward stands for, if it stands for any.
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
    proxy_for: Sequence[str] = ()
    draw: Callable[[ScoredSamples, Path], None] = lambda seen, path: None
    spell: Callable[[State], list[str]] | None = None
    diversity: Callable[[State], float] | None = None
    distances: Callable[[State], dict[str, tuple[float, float]]] | None = None
    distances_note: str = ""
    exact: Callable[[Policy], Mapping[str, float]] | None = None
    optimum: Callable[[], Mapping[str, float]] | None = None
    exact_note: str = ""
