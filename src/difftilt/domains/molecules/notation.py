"""How a model writes molecules: in which notation, in which tokens, and by which grammar."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from difftilt.data.chemistry import canonical, rdkit
from difftilt.domains.molecules.syntax import any_text, smiles_syntax, smiles_valences
from difftilt.domains.molecules.tokens import Pieces
from difftilt.networks.automaton import Automaton
from difftilt.rewards.molecule import REMEMBERED, read_or_none
from difftilt.shapes import Tokens

Notation = Literal["kekule", "aromatic", "selfies"]


@dataclass(frozen=True)
class Writing:
    """What rows of tokens mean.

    Args:
        pieces: The tokens of texts in the notation.
        deepest: Branches of SMILES that may be open at once.
        notation: SMILES whose double bonds are all written (`kekule`), where nothing can be wrong but
            brackets, rings and the number of bonds; SMILES as RDKit writes them, where the bonds of atoms
            in small letters must also be able to alternate (`aromatic`); or SELFIES, where nothing can be
            wrong, but each token's meaning depends on many others (`selfies`).
    Source:
        Krenn et al. (2020, SELFIES), https://arxiv.org/abs/1905.13741
    """

    pieces: Pieces
    deepest: int
    notation: Notation

    @property
    def alphabet(self) -> tuple[str, ...]:
        """What every token spells, the end's included."""
        return self.pieces.alphabet

    @property
    def longest(self) -> int:
        """Tokens per row."""
        return self.pieces.longest

    @functools.cached_property
    def grammar(self) -> Automaton:
        """What all rows obey."""
        if self.notation == "selfies":
            return any_text(self.alphabet, self.longest)
        return smiles_syntax(self.alphabet, self.longest, self.deepest)

    @functools.cached_property
    def valences(self) -> Automaton | None:
        """What rows obey besides, where they can."""
        if self.notation == "selfies":
            return None
        return smiles_valences(self.alphabet, self.longest, self.deepest)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """One row for each molecule that the tokens can write, given as SMILES as RDKit writes them."""
        return self.pieces.encode([text for text in written(texts, self.notation) if text])[0]

    def spell(self, x: Tokens) -> list[str]:
        """Each row as SMILES, those of molecules as RDKit writes them."""
        return [_smiles(text, self.notation) for text in self.pieces.spell(x)]


def written(texts: Sequence[str], notation: Notation) -> list[str]:
    """Molecules, given as SMILES as RDKit writes them, in a notation; empty where it has no word."""
    if notation == "aromatic":
        return list(texts)
    return [(_kekule if notation == "kekule" else _selfies)(text) for text in texts]


def _kekule(text: str) -> str:
    chem = rdkit("Chem")
    found = chem.MolFromSmiles(text)
    if found is None:  # RDKit writes a few that it does not read
        return ""
    chem.Kekulize(found, clearAromaticFlags=True)
    return chem.MolToSmiles(found, kekuleSmiles=True)


def _selfies(text: str) -> str:
    library = selfies()
    try:
        return library.encoder(text)
    except library.EncoderError:
        return ""


def selfies() -> Any:
    """The library of that name.

    Raises:
        ImportError: If it is not installed, with how to install it.
    """
    try:
        return import_module("selfies")
    except ImportError as error:
        raise ImportError(
            "SELFIES need their library; install it with pip install 'difftilt[molecules]'"
        ) from error


@functools.lru_cache(REMEMBERED)
def _smiles(text: str, notation: Notation) -> str:
    text = selfies().decoder(text) if notation == "selfies" else text
    found = read_or_none(text)
    return text if found is None else canonical(found)
