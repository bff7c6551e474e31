"""Masked diffusion models of molecules: byte-pair tokens of SMILES in any order, by the grammar of SMILES."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import torch.nn as nn

from difftilt.domains.molecules.syntax import smiles_syntax
from difftilt.domains.molecules.tokens import Pieces
from difftilt.networks.automaton import Automaton, both
from difftilt.networks.bundle import Bundle, Numbers, load_bundle, shipped_folder
from difftilt.networks.constraint import constrain
from difftilt.networks.sequence import Transformer
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Index

NETWORK = {"width": 128, "depth": 4, "heads": 4}


class Written(TypedDict):
    """A `Pieces`, and how deep branches are nested."""

    symbols: list[str]
    merges: list[list[int]]
    longest: int
    deepest: int


class Config(TypedDict):
    """What is needed of `config.json`."""

    tokens: Written
    network: dict[str, int]


def build(pieces: Pieces, sizes: dict[str, int]) -> Transformer:
    """An untrained network."""
    return Transformer(len(pieces.alphabet), pieces.longest, **sizes)


def free_chain(network: nn.Module, pieces: Pieces, start: Index | None = None) -> MaskedPolicy:
    """The chain of a network that draws one token at a time in random order, whatever it spells."""
    return MaskedPolicy(network, len(pieces.alphabet), pieces.longest, start=start)


def chain_of(
    network: nn.Module,
    pieces: Pieces,
    deepest: int,
    *,
    start: Index | None = None,
    rules: Sequence[Automaton] = (),
) -> MaskedPolicy:
    """The same of which no draw leaves what can become the SMILES of one molecule.

    Args:
        deepest: As for `smiles_syntax`.
        start: Tokens that stay, and masks elsewhere.
        rules: Constraints to obey beside the grammar.
    """
    syntax = smiles_syntax(pieces.alphabet, pieces.longest, deepest)
    return constrain(free_chain(network, pieces, start), functools.reduce(both, [syntax, *rules]))


def bundle_of(folder: Path | None) -> Bundle:
    """The network in a folder; the one that ships with the package by default."""
    how = "make one with difftilt pretrain molecules --out FOLDER"
    return load_bundle(folder or shipped_folder("molecules"), "model of molecules", how, "--model")


def load_molecules(folder: Path | None = None) -> tuple[Transformer, Pieces, int]:
    """A pretrained network, what its tokens spell, and how deep branches are nested.

    Raises:
        ValueError: If the folder holds none that can be used.
    """
    bundle = bundle_of(folder)
    known: Config = bundle.known(Config)
    with bundle.whole():
        written = known["tokens"]
        merges = tuple((first, second) for first, second in written["merges"])
        pieces = Pieces(tuple(written["symbols"]), merges, written["longest"])
        return bundle.load("model", build(pieces, known["network"])), pieces, written["deepest"]


def config_of(network: Transformer, pieces: Pieces, deepest: int, about: Numbers) -> Numbers:
    """What `load_molecules` reads, and how the network was made."""
    merges = [list(pair) for pair in pieces.merges]
    tokens = {"symbols": list(pieces.symbols), "merges": merges, "longest": pieces.longest}
    return {"tokens": tokens | {"deepest": deepest}, "network": network.sizes, "made": about}
