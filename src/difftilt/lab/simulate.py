"""A lab whose bench is a function: what a rule finds, and how far that is from the best there is."""

from dataclasses import dataclass, replace

import torch

from difftilt.conditions import unconditional
from difftilt.data.vocabulary import END, all_sequences
from difftilt.evaluation.estimate import Estimate, mean
from difftilt.experiment.job import Job
from difftilt.lab.language import SequenceLanguage
from difftilt.lab.propose import LISTED, Asked, checked, fill
from difftilt.networks.constraint import obeys
from difftilt.policy import rollout
from difftilt.rewards.learned import Labels
from difftilt.settings import UsageError
from difftilt.shapes import PerSample, Sequences
from difftilt.training.progress import progress
from difftilt.training.seeds import EVALUATION, seed_round

TOP = 10


@dataclass(frozen=True)
class Course:
    """What a simulated lab found with a seed, by the true reward.

    Args:
        best: The highest of all that was measured.
        top: The mean of the ten highest.
        batch: The mean of the last batch.
        regret: How far the best of all sequences is above the best found; None where they cannot be listed.
    """

    best: float
    top: float
    batch: float
    regret: float | None


def simulate(job: Job, asked: Asked, start: int, noise: float, show: bool = False) -> Course:
    """One lab: labels of the pretrained model's samples, then round after round.

    Args:
        asked: Its rule, batch, rounds and seed.
        start: Samples that are measured at first.
        noise: Standard deviation of a measurement around the job's reward.
        show: Tell how far it is.
    """
    chain, language = checked(job)
    if not isinstance(language, SequenceLanguage):
        raise UsageError("labs are simulated of sequences, such as dna; molecules have no list of all")
    seed_round(asked.seed, EVALUATION)
    x = rollout(chain, unconditional(start)).sample.unique(dim=0)
    true, y = _measured(job, x, noise)
    batch = true
    with progress(asked.rounds, 0, show) as tell:
        for number in range(asked.rounds):
            filled = fill(job, Labels(x, y), x, replace(asked, round=number))
            batch, score = _measured(job, filled.batch.sample, noise)
            x, true, y = torch.cat([x, filled.batch.sample]), torch.cat([true, batch]), torch.cat([y, score])
            tell({}, number + 1)
    best = true.max().item()
    return Course(best, true.topk(TOP).values.mean().item(), batch.mean().item(), _regret(job, best))


def _measured(job: Job, x: Sequences, noise: float) -> tuple[PerSample, PerSample]:
    """The true reward of samples, and what a bench says of it."""
    true = job.objective.reward(x, unconditional(len(x)))
    return true, true + noise * torch.randn_like(true)


def _regret(job: Job, best: float) -> float | None:
    chain, language = checked(job)
    if not isinstance(language, SequenceLanguage):
        return None
    vocabulary = language.vocabulary
    count = len(vocabulary.alphabet)
    if END in vocabulary.alphabet or count**vocabulary.longest > LISTED:
        return None
    every = all_sequences(count, vocabulary.longest)
    every = every[obeys(chain, every)]
    return job.objective.reward(every, unconditional(len(every))).max().item() - best


def over_seeds(courses: list[Course]) -> dict[str, Estimate | None]:
    """The means over seeds, with their standard errors."""
    found: dict[str, Estimate | None] = {}
    for name in ("best", "top", "batch", "regret"):
        values = [getattr(each, name) for each in courses]
        found[name] = None if None in values else mean(values)
    return found
