"""Rewards of RNA from ViennaRNA's secondary structures; black-box. They need `pip install 'difftilt[rna]'`.

Samples are tokens, shape (batch, length), in an alphabet of A, C, G and U; T, as in DNA, is read as U.
Energies are in kcal/mol at 37 degrees Celsius. Lorenz et al. (2011), https://doi.org/10.1186/1748-7188-6-26
"""

from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Literal

import torch

from difftilt.data.vocabulary import RNA, spell
from difftilt.guard import Reward
from difftilt.shapes import Cond, PerSample, State
from difftilt.transition import tokens

SHORTEST_LOOP = 3  # unpaired letters that a hairpin needs


def minimum_free_energy(alphabet: str = RNA, aim: Literal["fold", "unfold"] = "fold") -> Reward:
    """How stable the best secondary structure is, in kcal/mol.

    The minimum free energy is 0 for an RNA that does not fold, and the lower the more stable its structure.

    Args:
        alphabet: What token 0, 1, ... stands for.
        aim: `fold` rewards minus the energy, at least 0, for stable structures; `unfold` the energy itself,
            at most 0, for open ones.
    """
    vienna, sign = _vienna(), {"fold": -1.0, "unfold": 1.0}[aim]
    return _scored(alphabet, lambda word: sign * vienna.fold(word)[1])


def target_structure(
    target: str, alphabet: str = RNA, measure: Literal["distance", "defect"] = "distance"
) -> Reward:
    """How near an RNA comes to a target structure, from -1, far away, to 0, there.

    `distance`: minus the number of base pairs that only one of the target and the structure of minimum free
    energy has, per letter. `defect`: minus the ensemble defect, the expected share of letters that are not
    paired as in the target, over all structures by their Boltzmann weights.

    Args:
        target: Dot-bracket notation, such as `((((....))))`, as long as the samples.
        alphabet: What token 0, 1, ... stands for.
    Source:
        Zadeh et al. (2011), the defect. https://doi.org/10.1002/jcc.21633
    """
    _check_structure(target)
    vienna = _vienna()

    def distance(word: str) -> float:
        return -vienna.bp_distance(vienna.fold(word)[0], target) / len(target)

    def defect(word: str) -> float:
        ensemble = vienna.fold_compound(word)
        ensemble.pf()
        return -ensemble.ensemble_defect(target)

    return _scored(alphabet, {"distance": distance, "defect": defect}[measure], len(target))


def _scored(alphabet: str, score: Callable[[str], float], length: int | None = None) -> Reward:
    """The reward that scores the words that tokens spell."""
    other = sorted(set(alphabet) - set("ACGUT"))
    if other:
        raise ValueError(f"RNA has the letters A, C, G and U or T, but the alphabet holds {', '.join(other)}")

    def reward(sample: State, cond: Cond) -> PerSample:
        # ViennaRNA takes T, too, but then forgets the bonus of loops such as CUUCGG
        words = [word.replace("T", "U") for word in spell(tokens(sample), alphabet)]
        if not sample.shape[1]:  # ViennaRNA would say +100000 kcal/mol
            raise ValueError("an empty RNA does not fold: samples need a letter or more")
        if length is not None and sample.shape[1] != length:
            raise ValueError(
                f"the target structure has {length} letters, but got samples of {sample.shape[1]}; make them"
                " equally long"
            )
        return torch.tensor([score(word) for word in words], dtype=torch.float32, device=sample.device)

    return reward


def _check_structure(target: str) -> None:
    """Refuses what no RNA can fold into."""
    opened: list[int] = []
    for i, sign in enumerate(target):
        if sign not in "().":
            raise ValueError(f"a structure is written with ( ) and . but got {sign!r} at position {i + 1}")
        if sign == "(":
            opened.append(i)
        elif sign == ")":
            if not opened:
                raise ValueError(f"the structure closes a pair at position {i + 1} that was never opened")
            first = opened.pop()
            if i - first <= SHORTEST_LOOP:
                raise ValueError(
                    f"positions {first + 1} and {i + 1} of the structure are too near to pair: a hairpin"
                    f" needs {SHORTEST_LOOP} letters between them"
                )
    if opened or not target:
        what = f"opens a pair at position {opened[-1] + 1} that it never closes" if opened else "is empty"
        raise ValueError(f"the structure {what}; write one sign per letter, such as ((((....))))")


def _vienna() -> ModuleType:
    try:
        return import_module("RNA")
    except ImportError as error:
        raise ImportError(
            "rewards of RNA need ViennaRNA; install it with pip install 'difftilt[rna]'"
        ) from error
