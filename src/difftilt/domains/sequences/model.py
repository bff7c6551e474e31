"""Masked diffusion models of anybody's sequences, of one length or of several."""

import copy
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypedDict

import torch.nn as nn

from difftilt.data.vocabulary import Letters, Vocabulary
from difftilt.networks.automaton import Automaton, both, ended
from difftilt.networks.bundle import Bundle, load_bundle, user_folder
from difftilt.networks.constraint import Constrained, constrain
from difftilt.networks.sequence import MLP, Convolutional, corrected
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Index

SHORT = 20  # tokens up to which a network sees all of them at once
ROWS = 2**10  # of a table of words, which are as long as this allows
KERNEL = 7
LISTED = 2**20  # states up to which tuning learns one number for each


class Network(TypedDict):
    """How a network is built."""

    kind: Literal["MLP", "Convolutional"]
    sizes: dict[str, int]


class Config(TypedDict):
    """What is needed of `config.json`."""

    vocabulary: Letters
    network: Network


def network_for(vocabulary: Vocabulary, width: int | None = None) -> Network:
    """A network that suits the size of the sequences.

    Args:
        width: Units per layer; by default 64 up to `SHORT` tokens, 32 per position beyond.
    """
    count, length = len(vocabulary.alphabet), vocabulary.longest
    if length <= SHORT:
        window = max(w for w in range(length + 1) if (count + 1) ** w <= ROWS)
        return {"kind": "MLP", "sizes": {"width": width or 64, "depth": 2, "window": window}}
    # so many that the last token sees the first
    depth = next(depth for depth in range(3, length) if KERNEL // 2 * (2**depth - 1) >= length - 1)
    sizes = {"width": width or 32, "kernel": KERNEL, "depth": depth}
    return {"kind": "Convolutional", "sizes": sizes}


def build(network: Network, vocabulary: Vocabulary) -> nn.Module:
    """An untrained network."""
    made = MLP if network["kind"] == "MLP" else Convolutional
    return made(len(vocabulary.alphabet), vocabulary.longest, **network["sizes"])


def chain_of(
    network: nn.Module,
    vocabulary: Vocabulary,
    *,
    start: Index | None = None,
    steps: int | None = None,
    rules: Sequence[Automaton] = (),
) -> MaskedPolicy:
    """The chain of a network, which draws one token at a time in random order.

    Where sequences differ in length, no draw leaves the rows that spell one: their length is drawn with them.

    Args:
        start: Tokens that stay, and masks elsewhere.
        steps: Draw several tokens in one step; not where a constraint or the length ties them together.
        rules: Constraints to obey.
    """
    chain = MaskedPolicy(network, len(vocabulary.alphabet), vocabulary.longest, steps=steps, start=start)
    rules = [*rules, *([ended(vocabulary)] if vocabulary.shortest < vocabulary.longest else [])]
    return constrain(chain, functools.reduce(both, rules)) if rules else chain


def bare(policy: MaskedPolicy) -> nn.Module:
    """The network of a chain, without what keeps it to constraints."""
    return policy.network.network if isinstance(policy.network, Constrained) else policy.network


def tunable(network: nn.Module, vocabulary: Vocabulary) -> nn.Module:
    """A copy of a pretrained network to tune; of short sequences, one whose logits new values correct."""
    count, length = len(vocabulary.alphabet), vocabulary.longest
    network = copy.deepcopy(network)
    if (count + 1) ** length > LISTED:
        return network
    return corrected(network, count, length)


def bundle_of(folder: Path | None) -> Bundle:
    """The network in a folder; this user's last one by default."""
    how = "make one with difftilt pretrain sequences --data FILE --out FOLDER"
    return load_bundle(folder or user_folder("sequences"), "model of sequences", how, "--model")


def load_sequences(folder: Path | None = None) -> tuple[nn.Module, Vocabulary]:
    """A pretrained network, and what its tokens spell.

    Raises:
        ValueError: If the folder holds none that can be used.
    """
    bundle = bundle_of(folder)
    known: Config = bundle.known(Config)
    with bundle.whole():
        vocabulary = Vocabulary.of(known["vocabulary"])
        return bundle.load("model", build(known["network"], vocabulary)), vocabulary
