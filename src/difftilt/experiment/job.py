"""A job: everything that fine-tuning, sampling and reporting need, whoever wrote the recipe."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.data.vocabulary import Vocabulary
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.guard import Guard, Reward
from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy
from difftilt.rewards.combined import Part
from difftilt.rewards.diversity import Alike, DiversityFilter, texts_alike
from difftilt.rewards.scoring import guarded
from difftilt.settings import UsageError, choose, kebab
from difftilt.shapes import Cond, Sample, State
from difftilt.training.settings import Training
from difftilt.training.threads import quickest, using

Export = Callable[[Path, Mapping[str, Any]], None]
Deployed = Callable[[State, Cond], Sample]
P = ParamSpec("P")
T = TypeVar("T")
MEASURED = 64  # chains that threads are measured on, at most


@dataclass(frozen=True)
class Finding:
    """What a check of a job says, in a sentence.

    Args:
        wrong: Whether something would go wrong.
    """

    text: str
    wrong: bool = False


@dataclass(frozen=True)
class View:
    """How samples of a domain look to people, and what they are compared with. All of it may be left out.

    Args:
        spell: Each sample as a line of text, for tables and for rewards that read text.
        vocabulary: What reads such lines as samples, if they are rows of its tokens; `smiles` if they are
            molecules.
        alike: What makes samples alike, by name, for a diversity filter; of texts also `same` and `similar`.
        draw: Writes samples to files whose names begin with a path, in the domain's own format.
        diversity: A number that falls when samples become alike.
        distances: Two-sample distances of interest, by name, each with its standard error.
        distances_note: What they mean, in a sentence or two.
        family: What the largest family of samples is, in words, its share, and that share's standard error;
            None where there is none.
        kl_note: What the KL is besides, in a sentence or two.
        exact: Numbers of a policy that need no samples, by name; the one called `J` is its objective.
        optimum: The same numbers of the best possible distribution.
        exact_note: What they mean.
    """

    spell: Callable[[State], list[str]] | None = None
    vocabulary: Vocabulary | Literal["smiles"] | None = None
    alike: Mapping[str, Alike] = field(default_factory=dict)
    draw: Callable[[ScoredSamples, Path], None] | None = None
    diversity: Callable[[State], float] | None = None
    distances: Callable[[State], Mapping[str, tuple[float, float]]] | None = None
    distances_note: str = ""
    family: Callable[[State], tuple[str, float, float] | None] | None = None
    kl_note: str = ""
    exact: Callable[[Policy], Mapping[str, float]] | None = None
    optimum: Callable[[], Mapping[str, float]] | None = None
    exact_note: str = ""


@dataclass(frozen=True)
class Maker:
    """The function that made a job, by which it can be made again.

    Args:
        recipe: `FILE.py:FUNCTION`, or the name of one of ours.
        settings: Its arguments.
        why_not: If it cannot be made again: why, in a clause.
    """

    recipe: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True)
class Job:
    """What a recipe builds from its settings; `tune` makes one.

    Args:
        policy: The chain to tune; a copy of, or adapters on, the objective's reference.
        target_kl: KL in nats that alpha is moved to reach, if given.
        cond: Maps a number of samples to their conditions.
        gold: Rewards that training never sees, by name.
        proxy_for: Names of the gold rewards that the reward stands for, if it stands for any.
        view: How samples look, and what is known of them.
        maker: Who made it.
        held_out: As `cond`, of conditions that judge the model; those that it learns from by default.
        export: Writes the tuned model for others into a folder, with what summary.json says.
        checks: What can be checked of this kind of model alone, for `doctor`.
        deployed: What users of the tuned model draw from given x_T and conditions, where that is not what the
            chain draws: by a sampler without its noise, or with a last step that is tuned, too.
    """

    policy: Policy
    objective: Objective
    algorithm: Algorithm
    training: Training
    target_kl: float | None = None
    cond: Callable[[int], Cond] = unconditional
    gold: Mapping[str, Reward] = field(default_factory=dict)
    proxy_for: Sequence[str] = ()
    view: View = field(default_factory=View)
    maker: Maker | None = None
    held_out: Callable[[int], Cond] | None = None
    export: Export | None = None
    checks: Callable[[], Iterable[Finding]] | None = None
    deployed: Deployed | None = None

    @property
    def judged(self) -> int:
        """Samples that an evaluation asks the reward about."""
        return self.training.evaluate * (1 if self.deployed is None else 2)

    def judging(self, count: int) -> Cond:
        """Conditions to judge the model by."""
        return (self.held_out or self.cond)(count)

    def threads(self) -> int:
        """The number of threads that it asks for, or else is quickest with."""
        asked, rows = self.training.threads, min(self.training.batch, MEASURED)
        return asked or quickest(self.policy, self.cond(rows))

    def taking(self, threads: int) -> "Job":
        """The same job with so many threads, also when it is made again."""
        training, maker = replace(self.training, threads=threads), self.maker
        if maker is not None and isinstance(maker.settings.get("training"), Training):
            maker = replace(maker, settings={**maker.settings, "training": training})
        return replace(self, training=training, maker=maker)

    def starting_from(self, policy: Policy) -> "Job":
        """The same job, tuning another policy around the same chain."""
        return replace(self, policy=policy)


def threaded(run: Callable[Concatenate[Job, P], T]) -> Callable[Concatenate[Job, P], T]:
    """The same function of a job, computing with the threads that the job names, if it does."""

    @functools.wraps(run)
    def wrapped(job: Job, *args: P.args, **kwargs: P.kwargs) -> T:
        with using(job.training.threads):
            return run(job, *args, **kwargs)

    return wrapped


def tune(
    policy: Policy,
    reward: Reward | list[Part],
    algorithm: Algorithm | None = None,
    alpha: float = 1.0,
    training: Training | None = None,
    *,
    name: str = "",
    reference: Policy | None = None,
    target_kl: float | None = None,
    cond: Callable[[int], Cond] = unconditional,
    gold: Mapping[str, Reward] | None = None,
    proxy_for: Sequence[str] = (),
    view: View | None = None,
    held_out: Callable[[int], Cond] | None = None,
    export: Export | None = None,
    checks: Callable[[], Iterable[Finding]] | None = None,
    deployed: Deployed | None = None,
) -> Job:
    """The job of tuning a chain towards a reward.

    Args:
        policy: The pretrained chain, which is tuned.
        reward: Any function of (samples, conditions); see `Guard` for what it may return. Or the parts of
            several that become one, as the training's settings say.
        algorithm: How to tune; PPO by default. It is copied, since it learns.
        alpha: Weight of the KL, above 0, in units of the reward per nat.
        training: How long and how fast to train.
        name: What messages and reports call the reward; the function's own name by default.
        reference: The chain that the KL is to, frozen; a copy of the policy by default. One that shares the
            policy's weights, as `lora` returns it, saves that copy.
        target_kl: KL in nats that alpha is moved to reach, above 0, if given.
        cond: Maps a number of samples to their conditions.
        gold: Rewards that training never sees, by name, so that over-optimisation shows.
        proxy_for: Names of the gold rewards that the reward stands for, if it stands for any.
        view: How samples look, and what is known of them.
        held_out: As `cond`, for conditions that judge the model; those that it learns from by default.
        export: Writes the tuned model for others into a folder of the run, given what summary.json says.
        checks: What can be checked of this kind of model alone, for `doctor`.
        deployed: What users of the tuned model draw from given x_T, where that is not what the chain draws.
    """
    training, view = training or Training(), view or View()
    if not isinstance(reward, Guard):
        reward = guarded(reward, name, training, view.spell, training.seed)
    reference = copy.deepcopy(policy).requires_grad_(False) if reference is None else reference
    algorithm = copy.deepcopy(algorithm) if algorithm is not None else PPO()
    return Job(
        policy,
        Objective(reward, reference, alpha, _diversity(training, view, algorithm)),
        algorithm,
        training,
        target_kl,
        cond,
        gold or {},
        proxy_for,
        view,
        _maker(inspect.currentframe()),
        held_out,
        export,
        checks,
        deployed,
    )


def _diversity(training: Training, view: View, algorithm: Algorithm) -> DiversityFilter | None:
    """The filter that a training asks for, if it does."""
    name = training.diversity_filter
    if name is None:
        return None
    if not algorithm.filtered:
        raise UsageError(
            f"{kebab(type(algorithm).__name__)} learns from no rewards of single samples, of which a"
            f" diversity filter could take, but got diversity_filter {name!r}; use one that does, such as ppo"
        )
    known = {**({} if view.spell is None else texts_alike(view.spell)), **view.alike}
    if not known:
        raise UsageError(f"nothing tells whether samples of this recipe are alike, but got filter {name!r}")
    alike = choose("diversity filter", name, known)
    return DiversityFilter(alike, training.diversity_bucket, training.diversity_strength)


def _maker(here: FrameType | None) -> Maker | None:
    """The function that called `tune`, with its arguments as they are now."""
    caller = here.f_back if here is not None else None
    if caller is None:
        return None
    name, file = caller.f_code.co_name, Path(caller.f_code.co_filename)
    if caller.f_globals.get(name) is None or not file.is_file():
        return Maker(f"{file}:{name}", why_not="it was made outside of a function that has a name in a file")
    arguments = inspect.getargvalues(caller)
    return Maker(f"{file}:{name}", {key: arguments.locals[key] for key in arguments.args})
