"""Landscapes: tune a model of short sequences towards what was measured of every one of them.

All scores are known, so the tilted distribution, the optimum J* and any policy's own distribution are
computed, not estimated.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Annotated, Literal

import annotated_types as at

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.local_search import LocalSearch
from difftilt.algorithms.ppo import PPO
from difftilt.data.landscape import Landscape, load_landscape
from difftilt.data.vocabulary import DNA, PROTEIN, Vocabulary, encode
from difftilt.domains.landscape.model import landscape_policy, tunable
from difftilt.domains.landscape.truth import Truth
from difftilt.domains.sequences.view import sequence_view
from difftilt.experiment.job import Job, tune
from difftilt.experiment.reward import find_reward
from difftilt.networks.automaton import Automaton, both, count_range, forbid, gc_range
from difftilt.networks.constraint import constrain
from difftilt.processes.masked import MaskedPolicy
from difftilt.settings import Positive
from difftilt.shapes import Index
from difftilt.training.settings import Training

ALGORITHM = PPO(advantage="path", epochs=1, kl="reward")
# few variants are fit, and the model hardly ever draws them: PPO ends far from the optimum
RARE = LocalSearch()
# SIX6 ends .22 nats from the optimum with these, and .26 with the default rate and schedule
TRAINING = Training(
    rounds=150, batch=2048, learning_rate=2e-2, schedule="linear", save_every=15, evaluate=2000
)
Unit = Annotated[float, at.Interval(ge=0, le=1)]


def dna(
    algorithm: AnyAlgorithm = ALGORITHM,
    landscape: Literal["six6", "pax6", "egr2"] = "six6",
    reward: str = "score",
    alpha: Positive = 0.1,
    target_kl: Positive | None = None,
    template: str | None = None,
    forbidden: tuple[str, ...] = (),
    gc: tuple[Unit, Unit] = (0.0, 1.0),
    weights: Path | None = None,
    training: Training = TRAINING,
) -> Job:
    """Tunes a model of DNA 8-mers towards binding a protein; every 8-mer was measured.

    The model was pretrained on the half of all 8-mers that bind least. The reward is the binding score, 0 for
    the least and 1 for the most.

    Args:
        algorithm: How to tune.
        landscape: Which protein binds; all but six6 need difftilt data fetch tfbind8.
        reward: What to maximise: `score`, as above; or one of your own, FILE.py:NAME, command:COMMAND,
            http://HOST/PATH or learned:DIR. A function of one argument gets the sequences as text, and exact
            numbers are left out.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the reward per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        template: Letters that stay where they are, and N where one is to be drawn, such as NNGATTNN.
        forbidden: Motifs that no sequence may hold on either strand, such as GAATTC; N, R, Y and their like
            stand for several letters.
        gc: Least and greatest share of G and C, in [0, 1].
        weights: The folder that difftilt pretrain dna wrote; by default what ships with the package, or
            ~/.cache/difftilt/models/LANDSCAPE.
        training: How long and how fast to train.
    """
    table = load_landscape(landscape)
    rules = [forbid(list(forbidden), table.length, DNA, both_strands=True)] if forbidden else []
    rules += [gc_range(*gc, table.length, DNA)] if gc != (0, 1) else []
    policy = landscape_policy(table, _frozen(template, table, "N"), folder=weights)
    return _job(policy, table, rules, reward, alpha, algorithm, training, target_kl)


def protein(
    algorithm: AnyAlgorithm = RARE,
    reward: str = "score",
    alpha: Positive = 0.05,
    target_kl: Positive | None = None,
    template: str | None = None,
    charged: tuple[Unit, Unit] = (0.0, 1.0),
    weights: Path | None = None,
    training: Training = TRAINING,
) -> Job:
    """Tunes a model of four sites of protein G (GB1) towards fitness; nearly every variant was measured.

    The model was pretrained on the half of all variants that are least fit. The reward is the logarithm of
    the fitness, 0 for the least and 1 for the most. Needs difftilt data fetch gb1 and difftilt pretrain
    protein.

    Args:
        algorithm: How to tune.
        reward: What to maximise: `score`, as above; or one of your own, FILE.py:NAME, command:COMMAND,
            http://HOST/PATH or learned:DIR. A function of one argument gets the sequences as text, and exact
            numbers are left out.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the reward per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        template: Amino acids that stay where they are, and X where one is to be drawn, such as XDGX.
        charged: Least and greatest share of the charged amino acids D, E, K and R, in [0, 1].
        weights: The folder that difftilt pretrain protein wrote; ~/.cache/difftilt/models/gb1 by default.
        training: How long and how fast to train.
    """
    table = load_landscape("gb1")
    low, high = (round(share * table.length) for share in charged)
    rules = [count_range("DEKR", low, high, table.length, PROTEIN)] if charged != (0, 1) else []
    policy = landscape_policy(table, _frozen(template, table, "X"), folder=weights)
    return _job(policy, table, rules, reward, alpha, algorithm, training, target_kl)


def _job(
    policy: MaskedPolicy,
    table: Landscape,
    rules: list[Automaton],
    reward: str,
    alpha: float,
    algorithm: AnyAlgorithm,
    training: Training,
    target_kl: float | None,
) -> Job:
    reference, policy = policy.requires_grad_(False), tunable(policy, table)
    if rules:
        rule = functools.reduce(both, rules)
        reference, policy = constrain(reference, rule), constrain(policy, rule)
    view = dataclasses.replace(
        sequence_view(table.alphabet, best=0.1),  # others have the motif anywhere, if at all
        vocabulary=Vocabulary(tuple(table.alphabet), table.length, table.length),
    )
    own = reward != "score"
    job = tune(
        policy,
        find_reward(reward, {"score": table.lookup}, view.spell, training.reward_timeout),
        algorithm,
        alpha,
        training,
        name=reward if own else f"score of {table.name}",
        reference=reference,
        target_kl=target_kl,
        gold={f"score of {table.name}": table.lookup} if own else {},
        view=view,
    )
    return job if own else dataclasses.replace(job, view=Truth(job.objective, table).beside(view))


def _frozen(template: str | None, table: Landscape, free: str) -> Index | None:
    """The start of a chain that keeps the letters of a template."""
    if template is None:
        return None
    return encode([template], table.alphabet + free, table.length)[0]
