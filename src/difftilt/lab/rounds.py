"""A lab is begun, and its next round proposed."""

import math
from pathlib import Path

from difftilt.experiment.job import Job
from difftilt.lab.folder import Lab
from difftilt.lab.plate import wells, write_round
from difftilt.lab.propose import Asked, Filled, RuleName, fill
from difftilt.lab.records import Proposal, Round
from difftilt.rewards.learned import Labels
from difftilt.shapes import Cond, PerSample, Sample


def unmeasured(sample: Sample, cond: Cond) -> PerSample:
    """In the place of a reward: a lab's is what comes back from the bench."""
    raise ValueError("the reward of a lab is what was measured, and is not computed")


UNMEASURED = f"{__name__}:{unmeasured.__name__}"


def next_round(
    lab: Lab, job: Job, rule: RuleName, batch: int | None
) -> tuple[Round, list[Path], Filled | None]:
    """Proposes a round, or finishes the files of one that was proposed and not written.

    A round depends on what was measured and proposed, on the seed and on its number: who is killed before it
    is written down proposes the same again.

    Args:
        batch: In the place of the lab's own.

    Returns:
        The round, its files, and how it was filled; None if it had been before.

    Raises:
        ValueError: If the budget is spent, or no batch can be filled.
    """
    plan, rounds, proposals = lab.plan, lab.rounds(), lab.proposals()
    if late := next((each for each in rounds if not each.written), None):
        return late, finish(lab, late), None
    left = plan.budget - len(proposals)
    if left <= 0:
        raise ValueError(
            f"the budget of {plan.budget:,} sequences is spent, so nothing was proposed; if there is more to"
            " spend, say so with --budget and a larger number"
        )
    count, done = min(batch or plan.batch, left), len(rounds)
    known, language = lab.measured(), lab.language
    labels = Labels(language.read(known.texts), known.score.float())
    taken = language.read(list(dict.fromkeys([*lab.results(), *(each.text for each in proposals)])))
    asked = Asked(
        rule, count, done, done + math.ceil(left / count), plan.alpha, plan.distance, plan.per_parent,
        plan.both_strands, plan.seed,
    )  # fmt: skip
    filled = fill(job, labels, taken, asked)
    old = language.read([each.text for each in proposals])
    plate = max((each.plate for each in proposals), default=0) + 1
    lab.propose(rule, filled.notes, _wells(filled, job, done + 1, plate, filled.batch.nearest(old)))
    made = lab.rounds()[-1]
    return made, finish(lab, made), filled


def finish(lab: Lab, made: Round) -> list[Path]:
    """Writes the files of a round."""
    own = [each for each in lab.proposals() if each.round == made.number]
    paths = write_round(lab.folder, made.number, own, lab.language)
    lab.wrote(made.number)
    return paths


def _wells(
    filled: Filled, job: Job, number: int, plate: int, to_proposed: list[int] | list[None]
) -> list[Proposal]:
    """A batch in its wells."""
    sample, found = filled.batch.sample, filled.predicted
    spelled = job.view.spell(sample) if job.view.spell is not None else []
    texts = [filled.batch.language.cleaned(text) for text in spelled]
    mean, std = ([None] * len(texts),) * 2 if found is None else (found.mean.tolist(), found.total.tolist())
    to_labelled = filled.batch.nearest(filled.batch.labelled)
    rows = zip(texts, mean, std, to_labelled, to_proposed, filled.rules, wells(plate), strict=False)
    return [
        Proposal(f"P{where[0]:03}-{where[1]}", number, text, m, s, near, other, name, *where)
        for text, m, s, near, other, name, where in rows
    ]
