"""What to measure next: a belief is learned of all labels, and a batch drawn for what a rule asks of it.

Each part of a batch is drawn from the pretrained model tilted by its own reward and alpha, by sequential
Monte Carlo in many populations. Where they come down on too few new sequences the part goes on at a larger
alpha, and says so: a batch is full, or there is none.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from difftilt.conditions import unconditional
from difftilt.data.vocabulary import Vocabulary, all_sequences
from difftilt.experiment.job import Job
from difftilt.lab.language import Language, MoleculeLanguage, SequenceLanguage
from difftilt.lab.plate import Batch
from difftilt.networks.constraint import obeys
from difftilt.objective import Objective
from difftilt.policy import rollout
from difftilt.processes.masked import MaskedPolicy
from difftilt.rewards.held_out import FEWEST, Judgement, cross_validated
from difftilt.rewards.learned import Belief, Labels, Prediction
from difftilt.rewards.mutants import AdaLead, Genetic, Proposer, TopOfLibrary
from difftilt.rewards.queries import RULES, Query, parts
from difftilt.samplers.smc import SMC
from difftilt.settings import UsageError
from difftilt.shapes import Sequences
from difftilt.training.seeds import seed_round
from difftilt.values.tweedie import PosteriorMean

RIVALS = ("genetic", "adalead", "library-ucb")
RuleName = Literal[
    "ladder", "thompson", "ucb", "greedy", "penalised", "random", "genetic", "adalead", "library-ucb"
]  # of `RULES` and `RIVALS`
LISTED = 2**18  # sequences, of which all can be asked about
SPREAD = 4  # the scores' standard deviation over alpha, if that is not given
POPULATIONS, PARTICLES = 8, 128  # that a part is drawn from at a time
WAVES, WARMER = 4, 4  # of draws, each with so many times the alpha of the one before
FEWER = 4  # times, at most, that the least distance is lowered
SPARE = 4  # times the batch, that rivals propose


@dataclass(frozen=True)
class Asked:
    """What a batch shall be.

    Args:
        rule: One of `RULES` or `RIVALS`.
        count: Sequences.
        round: How many batches there were.
        rounds: How many there will be in all.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the score per nat; a quarter of
            the scores' standard deviation by default.
        distance: As for `Batch`, like the next two.
        seed: With the round, of all that is drawn.
    """

    rule: RuleName
    count: int
    round: int
    rounds: int
    alpha: float | None = None
    distance: int = 2
    per_parent: int | None = None
    both_strands: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Filled:
    """A full batch.

    Args:
        batch: Its sequences, in the order of the parts.
        rules: What each was drawn for, in words.
        predicted: What is believed of them, if anything.
        alpha: The one in force, if any.
        judged: What the belief is worth on labels that were held out, if there is one.
        notes: What had to be done to fill it, in sentences.
    """

    batch: Batch
    rules: list[str]
    predicted: Prediction | None
    alpha: float | None
    judged: Judgement | None
    notes: list[str]


def fill(job: Job, labels: Labels, taken: Sequences, asked: Asked) -> Filled:
    """The next batch.

    Args:
        job: Whose reference draws; its reward and algorithm do not count.
        labels: The points of texts, and the mean of what was measured.
        taken: Those of all that was measured or proposed.

    Raises:
        ValueError: If there are not as many new sequences as asked for.
    """
    chain, language = checked(job, asked.both_strands)
    learner = language.learner
    batch = Batch(language, labels.sample, taken, asked.distance, asked.per_parent)
    notes: list[str] = []
    belief = judged = alpha = None
    if len(labels) >= FEWEST and labels.score.std() > 0:
        alpha = asked.alpha or labels.score.std().item() / SPREAD
        scale, judged = cross_validated(learner(seed=asked.seed), labels, asked.seed)
        belief = language.belief(learner(seed=asked.seed).taught(labels), scale)
    elif asked.rule != "random":
        notes.append(
            f"{FEWEST} labels that differ are needed, and {len(labels)} are there: the rule was random"
        )
    rule = asked.rule if belief is not None else "random"
    seed_round(asked.seed, asked.round)
    with torch.no_grad():
        rules: list[str] = []
        for part in _parts(chain, language, labels, belief, alpha or 1.0, rule, asked):
            rules += [part.name] * _added(part, batch, notes)
        rules += ["model as it is"] * _topped_up(chain, batch, asked.count, notes)
        predicted = None if belief is None else belief(batch.sample)
    return Filled(batch, rules, predicted, alpha, judged, notes)


def checked(job: Job, both_strands: bool = False) -> tuple[MaskedPolicy, Language]:
    """The chain of a job that a lab can draw from, and what its samples are written in."""
    chain, vocabulary = job.objective.reference, job.view.vocabulary
    if vocabulary is None or not isinstance(chain, MaskedPolicy):
        raise UsageError(
            "a lab needs a recipe whose samples are text that is read back, such as sequences, dna, protein"
            " or molecules"
        )
    if vocabulary == "smiles":
        return chain, MoleculeLanguage(job.view.spell)
    return chain, SequenceLanguage(vocabulary, both_strands)


@dataclass(frozen=True)
class _Part:
    """A part of a batch.

    Args:
        waves: Candidates, and the alpha that they were drawn with; more follow where these are too few.
    """

    name: str
    count: int
    waves: Iterator[tuple[float, Sequences]]


def _parts(
    chain: MaskedPolicy,
    language: Language,
    labels: Labels,
    belief: Belief | None,
    alpha: float,
    rule: str,
    asked: Asked,
) -> Iterator[_Part]:
    """What a rule makes of a batch."""
    generator = torch.Generator().manual_seed(torch.initial_seed())
    if belief is None:
        yield _Part(rule, asked.count, iter([(alpha, _plain(chain))]))
    elif rule in RIVALS:
        found = _rival(rule, chain, _letters(language, rule))(labels, belief, SPARE * asked.count, generator)
        yield _Part(rule, asked.count, iter([(alpha, found[obeys(chain, found)])]))
    else:
        queries = RULES[rule](belief, alpha, asked.round, asked.rounds, generator)
        for number, (query, count) in enumerate(zip(queries, parts(queries, asked.count), strict=True), 1):
            of = f" {number}/{len(queries)}" if len(queries) > 1 else ""
            name = rule if query.reward is None else f"{rule}{of}, alpha {query.alpha:.3g}"
            yield _Part(name, count, _waves(chain, query))


def _letters(language: Language, rule: str) -> Vocabulary:
    if not isinstance(language, SequenceLanguage):
        raise UsageError(f"{rule} changes letters, which molecules have none of; take another rule")
    return language.vocabulary


def _waves(chain: MaskedPolicy, query: Query) -> Iterator[tuple[float, Sequences]]:
    """Draws for a query, at its alpha and then at larger and larger ones."""
    if query.reward is None:
        yield query.alpha, _plain(chain)
        return
    for wave in range(WAVES):
        objective = Objective(query.reward, chain, query.alpha * WARMER**wave)
        found = SMC(particles=PARTICLES).draw(objective, PosteriorMean(objective), unconditional(POPULATIONS))
        # in the order of draws without replacement by exp(reward / query.alpha), whatever they were drawn by
        chance = -torch.rand(len(found.reward), dtype=torch.float64).log().neg().log()
        order = (found.reward.double() * (1 / query.alpha - 1 / objective.alpha) + chance).argsort(
            descending=True
        )
        yield objective.alpha, found.sample[order]


def _plain(chain: MaskedPolicy) -> Sequences:
    return rollout(chain, unconditional(POPULATIONS * PARTICLES)).sample


def _rival(rule: str, chain: MaskedPolicy, vocabulary: Vocabulary) -> Proposer:
    """A proposer that asks no diffusion model."""

    def settle(x: Sequences) -> Sequences:
        return x[obeys(chain, x)]

    count = len(vocabulary.letters)
    if rule == "genetic":
        return Genetic(count, settle)
    if rule == "adalead":
        return AdaLead(count, settle)
    if len(vocabulary.alphabet) ** vocabulary.longest > LISTED or len(vocabulary.alphabet) > count:
        raise UsageError(
            f"library-ucb asks about all sequences, of which there are more than {LISTED:,} here; take ucb"
        )
    return TopOfLibrary(settle(all_sequences(count, vocabulary.longest)))


def _added(part: _Part, batch: Batch, notes: list[str]) -> int:
    """Adds a part to a batch, and returns how many sequences that were."""
    found = different = early = drawn = 0
    alpha = math.nan
    for wave, (last, candidates) in enumerate(part.waves):
        alpha = last
        found += batch.add(candidates, part.count - found)
        if not wave:
            drawn, different, early = len(candidates), len(candidates.unique(dim=0)), found
        if found == part.count:
            break
    if early < part.count:
        then = f", {found - early} were drawn with alpha up to {alpha:.3g}" * (found > early)
        rest = f", {part.count - found} from the model as it is" * (found < part.count)
        notes.append(
            f"{part.name}: {drawn:,} draws were {different:,} different sequences, of which {early} are new"
            f" and far enough from each other; of {part.count}{then}{rest}"
        )
    return found


def _topped_up(chain: MaskedPolicy, batch: Batch, count: int, notes: list[str]) -> int:
    """Fills what is left of a batch with samples of the model, nearer to each other where that must be.

    Raises:
        ValueError: If it cannot be filled.
    """
    begun = len(batch.rows)
    least = max(batch.distance // FEWER, 1)
    for distance in range(batch.distance, -1, -least):
        if len(batch.rows) < count and distance < batch.distance:
            notes.append(
                f"{len(batch.rows)} of {count} differ by {batch.distance} {batch.language.unit}, and others"
                " by less"
            )
        batch.distance = distance
        for _ in range(WAVES):
            if len(batch.rows) < count:
                batch.add(_plain(chain), count - len(batch.rows))
    if len(batch.rows) < count:
        raise ValueError(
            f"{len(batch.rows)} sequences were found that are new and allowed, but {count} are asked for, so"
            " nothing was proposed; ask for fewer with --batch, or relax template, constraints or --distance"
        )
    return count - begun
