"""Rewards of molecules, read from SMILES by RDKit; black-box. They need `pip install 'difftilt[molecules]'`.

A score maps a molecule to a number, and `rewarding` makes a reward of it. A text that is no molecule has no
score: what it earns instead is the guard's matter, and never 0 unawares.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from difftilt.answers import Failure
from difftilt.data.chemistry import NoMoleculeError, canonical, parse, rdkit
from difftilt.guard import Reward
from difftilt.rewards.diversity import Alike
from difftilt.shapes import Cond, State

Score = Callable[[Any], float]
HARD = 6.0  # synthetic accessibility from which on molecules are hard to make, by its authors
RADIUS, BITS = 2, 2048  # of Morgan fingerprints, as ECFP4
APART = 0.6  # Tanimoto distance of two molecules that are no more of one cluster
REMEMBERED = 2**14  # molecules that are not read again


def rewarding(score: Score, spell: Callable[[State], list[str]]) -> Reward:
    """The reward that scores the molecules which samples spell.

    Args:
        spell: Writes samples as SMILES.
    """

    def reward(sample: State, cond: Cond) -> Any:  # numbers and failures, which the guard takes apart
        return [scored(text, score) for text in spell(sample)]

    return reward


def scored(text: str, score: Score) -> float | Failure:
    """The score of a SMILES, or why it has none."""
    try:
        with rdkit("rdBase").BlockLogs():
            found = score(molecule(text))
    except NoMoleculeError as error:
        return Failure(f"got a text that {error}")
    return found if math.isfinite(found) else Failure(f"returned {found}")


def molecule(text: str) -> Any:
    """The molecule of a SMILES, which must not be changed; read once, also where it is none."""
    found = _read(text)
    if isinstance(found, NoMoleculeError):
        raise NoMoleculeError(str(found))
    return found


def read_or_none(text: str) -> Any:
    """The molecule of a SMILES, None if it is none."""
    try:
        return molecule(text)
    except NoMoleculeError:
        return None


def readable(texts: Sequence[str]) -> list[Any]:
    """The molecules of those texts that are any."""
    return [one for text in texts if (one := read_or_none(text)) is not None]


@functools.lru_cache(REMEMBERED)
def _read(text: str) -> Any:
    try:
        return parse(text)
    except NoMoleculeError as error:
        return error


def qed(found: Any) -> float:
    """How much a molecule is like known drugs, in [0, 1].

    Source:
        Bickerton et al. (2012), https://doi.org/10.1038/nchem.1243
    """
    return rdkit("Chem.QED").qed(found)


def accessibility(found: Any) -> float:
    """Synthetic accessibility, from 1, easily made, to 10.

    Source:
        Ertl and Schuffenhauer (2009), https://doi.org/10.1186/1758-2946-1-8
    """
    return _sascorer().calculateScore(found)


def ease(found: Any) -> float:
    """How easily a molecule is made: 1 at the best accessibility, 0 from `HARD` on."""
    return min(max((HARD - accessibility(found)) / (HARD - 1), 0.0), 1.0)


def druglike(found: Any) -> float:
    """The likeness to drugs times how easily a molecule is made."""
    return qed(found) * ease(found)


def logp(found: Any) -> float:
    """Wildman and Crippen's estimate of log10 of the partition between octanol and water."""
    return rdkit("Chem.Crippen").MolLogP(found)


def weight(found: Any) -> float:
    """Molecular weight in daltons."""
    return rdkit("Chem.Descriptors").MolWt(found)


def polar_area(found: Any) -> float:
    """Topological polar surface area in square angstroms."""
    return rdkit("Chem.Descriptors").TPSA(found)


def rotatable(found: Any) -> float:
    """The number of rotatable bonds."""
    return rdkit("Chem.rdMolDescriptors").CalcNumRotatableBonds(found)


def rings(found: Any) -> float:
    """The number of rings."""
    return found.GetRingInfo().NumRings()


def aromatic_rings(found: Any) -> float:
    """The number of aromatic rings."""
    return rdkit("Chem.rdMolDescriptors").CalcNumAromaticRings(found)


def odd_rings(found: Any) -> float:
    """The number of rings of neither 5 nor 6 atoms."""
    return sum(len(ring) not in (5, 6) for ring in found.GetRingInfo().AtomRings())


def atoms(found: Any) -> float:
    """The number of atoms that are no hydrogen."""
    return found.GetNumHeavyAtoms()


def no_alerts(found: Any) -> float:
    """1 if a molecule has none of the PAINS and BRENK alerts, else 0.

    Source:
        Baell and Holloway (2010), https://doi.org/10.1021/jm901137j; Brenk et al. (2008),
        https://doi.org/10.1002/cmdc.200700139
    """
    return float(not _alerts().HasMatch(found))


def having(patterns: Sequence[str]) -> Score:
    """The share of SMARTS patterns that a molecule holds, in [0, 1]."""
    wanted = [_pattern(text) for text in patterns]
    return lambda found: sum(found.HasSubstructMatch(one) for one in wanted) / len(wanted)


def lacking(patterns: Sequence[str]) -> Score:
    """1 if a molecule holds none of the SMARTS patterns, else 0."""
    held = having(patterns)
    return lambda found: float(held(found) == 0)


def similarity(references: Sequence[str]) -> Score:
    """The greatest Tanimoto similarity of Morgan fingerprints to molecules given as SMILES, in [0, 1]."""
    known = [fingerprint(_reference(text)) for text in references]
    return lambda found: max(rdkit("DataStructs").BulkTanimotoSimilarity(fingerprint(found), known))


def keeping(references: Sequence[str]) -> Score:
    """1 if a molecule holds the scaffold of one of the references, given as SMILES, else 0."""
    kept = [_scaffold_of(text) for text in references]
    return lambda found: float(any(found.HasSubstructMatch(one) for one in kept))


def fingerprint(found: Any) -> Any:
    """The Morgan fingerprint of a molecule."""
    return _generator().GetFingerprint(found)


def nearest(found: Any, known: Sequence[str]) -> tuple[float, int]:
    """The greatest Tanimoto similarity to molecules given as SMILES, at least one, and which has it."""
    alike = rdkit("DataStructs").BulkTanimotoSimilarity(fingerprint(found), [*map(_print, known)])
    place = max(range(len(known)), key=alike.__getitem__)
    return alike[place], place


@functools.lru_cache(REMEMBERED)
def _print(text: str) -> Any:
    return fingerprint(parse(text))


def scaffold(found: Any) -> str:
    """The Bemis-Murcko scaffold, rings and what links them, as SMILES; empty of a molecule without rings."""
    return rdkit("Chem.Scaffolds.MurckoScaffold").MurckoScaffoldSmiles(mol=found)


def molecules_alike(spell: Callable[[State], list[str]]) -> dict[str, Alike]:
    """When molecules are alike: `same`, `scaffold`, of which none is one, and `similar`, in one cluster.

    A molecule is of the cluster of the nearest of the first ones, if it is less than `APART` from it. What is
    no molecule is like nothing.
    """

    def by(name: Callable[[Any], str]) -> Alike:
        return lambda sample, known: [one and name(one) for one in map(read_or_none, spell(sample))]

    def similar(sample: State, known: Sequence[str]) -> list[str | None]:
        leaders, names = list(known), list[str | None]()
        for text in spell(sample):
            one = read_or_none(text)
            alike, place = nearest(one, leaders) if one is not None and leaders else (0.0, 0)
            if one is not None and alike <= 1 - APART:
                place = len(leaders)
                leaders.append(text)
            names.append(None if one is None else leaders[place])
        return names

    return {"same": by(canonical), "scaffold": by(scaffold), "similar": similar}


SCORES: Mapping[str, Score] = {
    "qed": qed,
    "sa": ease,
    "druglike": druglike,
    "logp": logp,
    "mw": weight,
    "tpsa": polar_area,
    "rotatable": rotatable,
    "alerts": no_alerts,
}


def _pattern(text: str) -> Any:
    with rdkit("rdBase").BlockLogs():
        found = rdkit("Chem").MolFromSmarts(text) if text else None
    if found is None:
        raise ValueError(f"SMARTS such as c1ccccc1[OH] are expected, but got {text!r}")
    return found


def _reference(text: str) -> Any:
    try:
        return parse(text)
    except NoMoleculeError as error:
        raise ValueError(f"a reference is a SMILES, but got {text!r}, which {error}") from None


def _scaffold_of(text: str) -> Any:
    kept = scaffold(_reference(text))
    if not kept:
        raise ValueError(
            f"a scaffold is made of rings, but got {text}, which has none; give a molecule that has"
        )
    return parse(kept)


@functools.cache
def _generator() -> Any:
    return rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(RADIUS, fpSize=BITS)


@functools.cache
def _alerts() -> Any:
    catalogs = rdkit("Chem.rdfiltercatalog")
    wanted = catalogs.FilterCatalogParams()
    for name in ("PAINS", "BRENK"):
        wanted.AddCatalog(getattr(wanted.FilterCatalogs, name))
    return catalogs.FilterCatalog(wanted)


@functools.cache
def _sascorer() -> Any:
    """RDKit ships the score as a script outside of its package."""
    path = Path(rdkit("RDConfig").RDContribDir) / "SA_Score" / "sascorer.py"
    spec = importlib.util.spec_from_file_location("sascorer", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"RDKit comes without {path}; install it with pip install 'difftilt[molecules]'")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
