"""Samples that are steered towards the reward as they are drawn, and judged like those of a tuned model."""

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.experiment.finetune import keep
from difftilt.experiment.job import Job
from difftilt.guard import Guard
from difftilt.objective import Value, standard_error
from difftilt.policy import Policy
from difftilt.samplers.base import Sampler
from difftilt.training.seeds import EVALUATION, seed_round

FEWEST = 4  # populations: what fewer differ by says little of their error


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
    torch.set_num_threads(job.training.threads)
    seed_round(seed, EVALUATION)
    started, cond = time.monotonic(), job.cond(max(FEWEST, math.ceil(count / sampler.kept)))
    with _watching(job.objective.reward):
        steered = sampler.draw(job.objective, value, cond, policy)
    seconds = time.monotonic() - started
    gold = {name: judge(steered.sample, steered.cond).double() for name, judge in job.gold.items()}
    keep(job, ScoredSamples(steered.sample, steered.reward, steered.kl, gold, steered.alpha), place)
    row = steered.summary() | {"populations": len(steered.log_z), "gold": {}, "gold_se": {}}
    for name, score in gold.items():
        means = steered.means(score)
        row["gold"][name] = means.mean().item()
        row["gold_se"][name] = standard_error(means).item()
    if job.diversity is not None:
        row["diversity"] = job.diversity(steered.sample)
    return row | {"dropped": job.objective.reward.dropped, "seconds": seconds}


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
    columns = (SpinnerColumn(), TextColumn("steering"), _Calls(reward), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as bar:
        bar.add_task("", total=None)
        yield
