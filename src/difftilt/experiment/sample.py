"""Samples of a job's model, or steered towards its reward as they are drawn, judged and left in a folder."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from difftilt.data.owned import adding
from difftilt.evaluation.estimate import mean
from difftilt.evaluation.evaluate import ScoredSamples, evaluate, write_table
from difftilt.experiment.job import Deployed, Job, View, threaded
from difftilt.guard import Guard
from difftilt.guidance.tempered import Tempered
from difftilt.objective import Objective, Value, standard_error
from difftilt.policy import Policy
from difftilt.samplers.base import Sampler
from difftilt.settings import Positive, check_value
from difftilt.shapes import Cond, PerSample, Sample
from difftilt.training.load import load_alpha, load_policy
from difftilt.training.progress import passing
from difftilt.training.seeds import EVALUATION, seed_round

FEWEST = 4  # populations: what fewer differ by says little of their error


def trained(job: Job, folder: Path) -> Job:
    """The job with the weights, and the alpha, of a run's newest good checkpoint."""
    load_policy(folder, job.policy)
    job.objective.alpha = load_alpha(folder) or job.objective.alpha
    return job


@threaded
def sample(
    job: Job, place: Path | str, count: int = 64, seed: int = 1, temperature: float = 1.0
) -> dict[str, Any]:
    """Draws samples from the job's policy, judges them, and leaves them beside a path.

    Args:
        place: What the names of the files begin with.
        count: How many, at least 2.
        seed: At least 0.
        temperature: Of each step of a chain of tokens, above 0; below 1 its likely tokens become likelier.

    Returns:
        Reward, KL and J of the samples, as in summary.json; and `tempering_kl_nats`, the KL from the tempered
        chain to the policy's own, unless the temperature is 1.
    """
    own, paid = job.policy, {}
    if temperature != 1:
        check_value("temperature", temperature, Positive)
        if not own.symbols:
            raise ValueError(f"a temperature is for chains of tokens, but got {temperature} for real numbers")
        job = job.starting_from(Tempered(own, temperature))
        free = Objective(_nothing, own, job.objective.alpha)
        spent = mean(evaluate(job.policy, free, job.judging(count), {}, seed=seed).kl)
        paid = {
            "temperature": temperature,
            "tempering_kl_nats": spent.value,
            "tempering_kl_nats_se": spent.se,
        }
    drawn = look(job, Path(place), count, seed)
    return drawn.summary() | paid | {"reward_calls": job.objective.reward.calls}


def _nothing(sample: Sample, cond: Cond) -> PerSample:
    """A reward that costs nothing."""
    return torch.zeros(len(sample), device=sample.device)


@threaded
def steer(
    job: Job, sampler: Sampler, value: Value, place: Path, *, count: int, seed: int, policy: Policy | None
) -> dict[str, Any]:
    """Draws samples with a sampler, judges them, and leaves them beside a path.

    Args:
        place: What the files' paths begin with.
        count: How many samples at least; there are as many as whole populations give.
        policy: What proposes; the pretrained chain by default.

    Returns:
        Reward, KL, J, log Z and the gold rewards, each with its standard error, and what they cost.
    """
    seed_round(seed, EVALUATION)
    started, cond = time.monotonic(), job.judging(max(FEWEST, math.ceil(count / sampler.kept)))
    with _watching(job.objective.reward):
        steered = sampler.draw(job.objective, value, cond, policy)
    seconds = time.monotonic() - started
    gold = {name: judge(steered.sample, steered.cond).double() for name, judge in job.gold.items()}
    seen = ScoredSamples(steered.sample, steered.reward, steered.kl, gold, steered.alpha, cond=steered.cond)
    keep(job, seen, place)
    row = steered.summary() | {"populations": len(steered.log_z), "gold": {}, "gold_se": {}}
    for name, score in gold.items():
        means = steered.means(score)
        row["gold"][name] = means.mean().item()
        row["gold_se"][name] = standard_error(means).item()
    if job.view.diversity is not None:
        row["diversity"] = job.view.diversity(steered.sample)
    return row | job.objective.reward.failures | {"seconds": seconds}


def judge(job: Job, folder: Path, name: str) -> tuple[ScoredSamples, dict[str, Any]]:
    """Evaluates the policy, writes its samples under a name, and returns them with their numbers.

    The same seed serves every name, so that pictures before and after start from the same noise. The numbers
    count the reward calls of this evaluation.
    """
    calls = job.objective.reward.calls
    seen, view = look(job, folder / "samples" / name, job.training.evaluate, job.training.seed), job.view
    row = seen.summary()
    if job.proxy_for:
        row["proxy_for"] = list(job.proxy_for)
    if job.deployed is not None:
        row |= as_deployed(job, job.deployed, seen)
    if view.diversity is not None:
        row["diversity"] = view.diversity(seen.sample)
    if view.distances is not None:
        row |= {"distances": dict(view.distances(seen.sample)), "distances_note": view.distances_note}
    if view.family is not None and (found := view.family(seen.sample)):
        row |= dict(zip(("family", "family_share", "family_share_se"), found, strict=True))
    if view.kl_note:
        row["kl_note"] = view.kl_note
    if view.exact is not None:
        row |= {"exact": dict(view.exact(job.policy)), "exact_note": view.exact_note}
    if view.optimum is not None:
        row["optimum"] = dict(view.optimum())
    return seen, row | {"reward_calls": job.objective.reward.calls - calls}


@torch.no_grad()
def as_deployed(job: Job, deployed: Deployed, seen: ScoredSamples) -> dict[str, Any]:
    """The reward of what users draw from the same x_T and conditions, and how far it is above the chain's."""
    if seen.start is None:
        raise ValueError("samples of a chain are needed, with the x_T that each began with")
    reward = job.objective.reward(deployed(seen.start, seen.cond), seen.cond).double()
    valid = reward.isfinite()
    if not valid.any():
        return {}
    found, gap = mean(reward[valid]), mean((reward - seen.reward)[valid])
    row = {
        "deployed_reward": found.value,
        "deployed_reward_se": found.se,
        "deployed_samples": int(valid.sum()),
    }
    return row | {"deployed_gap": gap.value, "deployed_gap_se": gap.se}


def attend(job: Job, folder: Path) -> None:
    """Passes through the networks with the process that judges a run, for networks that are sharded."""
    load_policy(folder, job.policy)
    free = Objective(_nothing, job.objective.reference, job.objective.alpha)
    evaluate(job.policy, free, job.judging(job.training.evaluate), {}, seed=job.training.seed)
    if job.view.exact is not None:
        job.view.exact(job.policy)


def look(job: Job, place: Path, count: int, seed: int) -> ScoredSamples:
    """Evaluates the policy, and keeps its samples."""
    seen = evaluate(job.policy, job.objective, job.judging(count), job.gold, seed=seed)
    keep(job, seen, place)
    return seen


def keep(job: Job, seen: ScoredSamples, place: Path, *, clusters: bool = True) -> None:
    """Writes pictures and numbers of samples into files whose paths begin with `place`.

    Args:
        clusters: Say which samples are alike, if the domain can tell.
    """
    with adding(place.parent) as new:
        if job.view.draw is not None:
            job.view.draw(seen, new / place.name)
        spelt = job.view.spell(seen.sample) if job.view.spell is not None else None
        alike = _clusters(job.view, seen) if clusters else None
        write_table(new / f"{place.name}.csv", seen, spelt, alike)


def _clusters(view: View, seen: ScoredSamples) -> list[str | None] | None:
    """Which cluster each sample is of, where the domain has such: named after its best, from the best on."""
    if "similar" not in view.alike:
        return None
    order = seen.reward.argsort(descending=True, stable=True)
    names = view.alike["similar"](seen.sample[order.to(seen.sample.device)], [])
    return [names[place] for place in order.argsort().tolist()]


class _Calls(ProgressColumn):
    """How often the reward was called so far."""

    def __init__(self, reward: Guard):
        super().__init__()
        self._reward = reward

    def render(self, task: Task) -> Text:
        return Text(f"{self._reward.calls:,} reward calls")


@contextmanager
def _watching(reward: Guard) -> Iterator[None]:
    """Shows that something happens, if the terminal can."""
    with passing(SpinnerColumn(), TextColumn("steering"), _Calls(reward), TimeElapsedColumn()) as bar:
        bar.add_task("", total=None)
        yield
