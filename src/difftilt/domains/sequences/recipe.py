"""Sequences of anybody: tune a model of them towards a reward."""

import dataclasses
from functools import partial
from pathlib import Path

import torch

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.ppo import PPO
from difftilt.data.vocabulary import DNA, PROTEIN, RNA, Vocabulary, split
from difftilt.domains.sequences.model import bundle_of, chain_of, load_sequences, tunable
from difftilt.domains.sequences.view import kmer_correlation, sequence_view, word_length
from difftilt.experiment.job import Job, tune
from difftilt.experiment.reward import find_reward
from difftilt.networks.automaton import Automaton, forbid, share_range
from difftilt.settings import Count, Positive, Unit, UsageError
from difftilt.shapes import Index, Sequences, State
from difftilt.training.settings import Training
from difftilt.transition import tokens

ALGORITHM = PPO(epochs=1, minibatches=4)
TRAINING = Training(rounds=60, batch=256, learning_rate=1e-2, schedule="linear")
NAMES = {"all": "held-out sequences", "best": "the best tenth"}

NOTE = (
    "Correlations, 1 for equal frequencies, between how often each short word occurs in the samples and in"
    " sequences of the data that the model has not learned from, or in those of the highest scores."
)


def sequences(
    algorithm: AnyAlgorithm = ALGORITHM,
    model: Path | None = None,
    reward: str = "",
    alpha: Positive = 0.1,
    target_kl: Positive | None = None,
    template: str | None = None,
    forbidden: tuple[str, ...] = (),
    both_strands: bool = False,
    share: tuple[str, Unit, Unit] | None = None,
    steps: Count | None = None,
    training: Training = TRAINING,
) -> Job:
    """Tunes a model of your own sequences, of any length and letters, towards a reward of yours.

    The model comes from difftilt pretrain sequences.

    Args:
        algorithm: How to tune.
        model: The folder that difftilt pretrain sequences wrote; ~/.cache/difftilt/models/sequences by
            default.
        reward: What to maximise: FILE.py:NAME, command:COMMAND, http://HOST/PATH or learned:DIR. A function
            of one argument gets the sequences as text.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the reward per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        template: Letters that stay where they are, from the first on, and N (of proteins X, of other tokens
            ?) where one is to be drawn.
        forbidden: Motifs that no sequence may hold; of nucleotides N, R, Y and their like stand for several.
        both_strands: Forbid the motifs' reverse complements, too.
        share: Letters, and the least and greatest share of them in a sequence, in [0, 1], such as GC 0.4 0.6.
        steps: Steps in which all letters are drawn, at least 1; by default one each. Letters of one step do
            not know of each other, so sequences of several lengths and constraints need one each.
        training: How long and how fast to train.
    """
    if not reward:
        raise UsageError("a reward is needed: --reward FILE.py:NAME, command:COMMAND, learned:DIR, ...")
    network, vocabulary = load_sequences(model)
    start = None if template is None else frozen(template, vocabulary)
    rules = _rules(vocabulary, forbidden, both_strands, share)
    reference, policy = (
        chain_of(part, vocabulary, start=start, steps=steps, rules=rules)
        for part in (network, tunable(network, vocabulary))
    )
    compared = {name: x.long() for name, x in bundle_of(model).tensors("measured").items()}
    view = dataclasses.replace(
        sequence_view(vocabulary.alphabet),
        vocabulary=vocabulary,
        distances=partial(similar, compared=compared, vocabulary=vocabulary),
        distances_note=NOTE,
    )
    return tune(
        policy,
        find_reward(reward, {}, view.spell, training.reward_timeout),
        algorithm,
        alpha,
        training,
        name=reward,
        reference=reference.requires_grad_(False),
        target_kl=target_kl,
        view=view,
    )


def frozen(template: str, vocabulary: Vocabulary) -> Index:
    """The start of a chain that keeps the letters of a template.

    Raises:
        ValueError: If it holds other letters, or too many.
    """
    kinds = {"".join(sorted(DNA)): "N", "".join(sorted(RNA)): "N", PROTEIN: "X"}
    free = kinds.get("".join(sorted(vocabulary.letters)), "?")
    found = split(template, (*vocabulary.letters, free))
    if found is None or len(found) > vocabulary.longest:
        raise ValueError(
            f"a template has at most {vocabulary.longest} letters of the model, or {free} for those to be"
            f" drawn, but got {template[:80]!r}"
        )
    start = torch.full((vocabulary.longest,), len(vocabulary.alphabet))
    for place, letter in enumerate(found):
        if letter != free:
            start[place] = vocabulary.letters.index(letter)
    return start


def _rules(
    vocabulary: Vocabulary,
    forbidden: tuple[str, ...],
    both_strands: bool,
    share: tuple[str, float, float] | None,
) -> list[Automaton]:
    length, alphabet = vocabulary.longest, vocabulary.alphabet
    rules = [forbid(list(forbidden), length, alphabet, both_strands=both_strands)] if forbidden else []
    if share is not None:
        text, low, high = share
        rules.append(share_range(split(text, vocabulary.letters) or [text], low, high, length, alphabet))
    return rules


def similar(
    sample: State, compared: dict[str, Sequences], vocabulary: Vocabulary
) -> dict[str, tuple[float, float]]:
    """Correlations of the samples' words with those of the data, each with its standard error."""
    count, end = len(vocabulary.letters), vocabulary.shortest < vocabulary.longest
    k = word_length(vocabulary)
    return {
        f"{k}-mers of {NAMES[name]}": kmer_correlation(tokens(sample), x, count, k, end)
        for name, x in compared.items()
    }
