"""Molecules as RDKit reads them; what is none is told why. It needs `pip install 'difftilt[molecules]'`."""

import re
from importlib import import_module
from typing import Any

LONGEST = 1000  # characters of a SMILES that is read
WRITTEN = re.compile(r"[!-~]*")  # ASCII without blanks
RING = re.compile(r"%\(\d+\)|%\d\d|\d")


class NoMoleculeError(ValueError):
    """A text is no molecule. The message is a clause whose subject is the text."""


def rdkit(name: str) -> Any:
    """A module of RDKit, such as `Chem.QED`.

    Raises:
        ImportError: If it is not installed, with how to install it.
    """
    try:
        return import_module(f"rdkit.{name}")
    except ImportError as error:
        raise ImportError(
            "molecules need RDKit; install it with pip install 'difftilt[molecules]'"
        ) from error


def parse(text: str) -> Any:
    """The molecule that a SMILES stands for.

    Raises:
        NoMoleculeError: If it stands for none, or if an atom is a wildcard.
    """
    _check_text(text)
    chem = rdkit("Chem")
    with rdkit("rdBase").BlockLogs():
        options = chem.SmilesParserParams()
        options.sanitize, options.allowCXSMILES = False, False
        found = chem.MolFromSmiles(text, options)
        if found is None:
            raise NoMoleculeError(_fault(text))
        if not found.GetNumAtoms():
            raise NoMoleculeError("has no atoms")
        if any(not atom.GetAtomicNum() for atom in found.GetAtoms()):
            raise NoMoleculeError("has a wildcard in the place of an atom")
        try:
            chem.SanitizeMol(found)
        except chem.AtomValenceException as error:
            raise NoMoleculeError(f"has an atom with too many bonds ({_told(error)})") from None
        except chem.KekulizeException as error:
            raise NoMoleculeError(
                f"has aromatic atoms whose bonds cannot alternate ({_told(error)})"
            ) from None
        except (ValueError, RuntimeError) as error:
            raise NoMoleculeError(f"is refused by RDKit ({_told(error)})") from None
        if "@" in text and chem.MolFromSmiles(text) is None:  # of chiral atoms it forgets hydrogens above
            raise NoMoleculeError("has a chiral atom with too many bonds")
        chem.AssignStereochemistry(found, cleanIt=True)
    return found


def _check_text(text: str) -> None:
    if not text:
        raise NoMoleculeError("is empty")
    if len(text) > LONGEST:
        raise NoMoleculeError(f"has {len(text):,} characters, but at most {LONGEST:,} are read")
    if not WRITTEN.fullmatch(text):
        strange = WRITTEN.sub("", text)[0]
        raise NoMoleculeError(f"holds {strange!a}, which is no sign of SMILES")


def canonical(molecule: Any, stereo: bool = True) -> str:
    """The one SMILES that RDKit writes for a molecule."""
    return rdkit("Chem").MolToSmiles(molecule, isomericSmiles=stereo)


def largest(molecule: Any) -> Any:
    """The part of a salt or mixture with the most heavy atoms; of several the first."""
    parts = rdkit("Chem").GetMolFrags(molecule, asMols=True)
    return max(parts, key=lambda part: part.GetNumHeavyAtoms())


def _fault(text: str) -> str:
    """What is wrong with a SMILES that cannot be read, as far as its signs tell."""
    outside = re.sub(r"\[[^\[\]]*\]", "C", text)
    if "[" in outside or "]" in outside:
        return "has an atom in brackets that are open"
    if outside.count("(") != outside.count(")"):
        return "has a branch that is open"
    rings = RING.findall(outside)
    if any(rings.count(ring) % 2 for ring in set(rings)):
        return "has a ring that is open"
    return "is no SMILES that RDKit can read"


def _told(error: Exception) -> str:
    return " ".join(str(error).split())[:100]
