"""Masked diffusion models of molecules: byte-pair tokens in any order, by the grammar of their notation."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

import torch.nn as nn

from difftilt.domains.molecules.notation import Notation, Writing
from difftilt.domains.molecules.tokens import Pieces
from difftilt.networks.automaton import Automaton, both
from difftilt.networks.bundle import Bundle, Numbers, load_bundle, shipped_folder
from difftilt.networks.constraint import constrain
from difftilt.networks.sequence import Transformer
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Index

NETWORK = {"width": 128, "depth": 4, "heads": 4}


class Written(TypedDict):
    """A `Writing`; one without a notation is of aromatic SMILES."""

    symbols: list[str]
    merges: list[list[int]]
    longest: int
    deepest: int
    notation: NotRequired[Notation]


class Config(TypedDict):
    """What is needed of `config.json`."""

    tokens: Written
    network: dict[str, int]


def build(writing: Writing, sizes: dict[str, int]) -> Transformer:
    """An untrained network."""
    return Transformer(len(writing.alphabet), writing.longest, **sizes)


def free_chain(network: nn.Module, writing: Writing, start: Index | None = None) -> MaskedPolicy:
    """The chain of a network that draws one token at a time in random order, whatever it spells."""
    return MaskedPolicy(network, len(writing.alphabet), writing.longest, start=start)


def chain_of(
    network: nn.Module, writing: Writing, *, start: Index | None = None, rules: Sequence[Automaton] = ()
) -> MaskedPolicy:
    """The same of which no draw leaves the grammar, nor the valences where there is a way to keep to both.

    Args:
        start: Tokens that stay, and masks elsewhere.
        rules: Constraints to obey beside the grammar.
    """
    rule = functools.reduce(both, rules, writing.grammar)
    return constrain(free_chain(network, writing, start), rule, writing.valences)


def bundle_of(folder: Path | None) -> Bundle:
    """The network in a folder; the one that ships with the package by default."""
    how = "make one with difftilt pretrain molecules --out FOLDER"
    return load_bundle(folder or shipped_folder("molecules"), "model of molecules", how, "--model")


def load_molecules(folder: Path | None = None) -> tuple[Transformer, Writing]:
    """A pretrained network, and how it writes.

    Raises:
        ValueError: If the folder holds none that can be used.
    """
    bundle = bundle_of(folder)
    known: Config = bundle.known(Config)
    with bundle.whole():
        told = known["tokens"]
        merges = tuple((first, second) for first, second in told["merges"])
        pieces = Pieces(tuple(told["symbols"]), merges, told["longest"])
        writing = Writing(pieces, told["deepest"], told.get("notation", "aromatic"))
        return bundle.load("model", build(writing, known["network"])), writing


def config_of(network: Transformer, writing: Writing, about: Numbers) -> Numbers:
    """What `load_molecules` reads, and how the network was made."""
    pieces, how = writing.pieces, {"deepest": writing.deepest, "notation": writing.notation}
    merges = [list(pair) for pair in pieces.merges]
    tokens = {"symbols": list(pieces.symbols), "merges": merges, "longest": pieces.longest}
    return {"tokens": tokens | how, "network": network.sizes, "made": about}
