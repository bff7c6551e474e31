"""Docking of molecules into a protein by AutoDock Vina; black-box; `pip install 'difftilt[docking]'`.

Scores are the least free energies of binding that Vina finds, in kcal/mol, with the opposite sign: the higher
the better. Seconds per molecule: score it in workers, with a time limit.

Eberhardt et al. (2021), https://doi.org/10.1021/acs.jcim.1c00203
"""

import os
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from difftilt.data.chemistry import NoMoleculeError, rdkit
from difftilt.settings import UsageError

SEED = 1  # of conformers and of the search: a molecule has one score
POCKETS = {".pdb": "MolFromPDBFile", ".sdf": "MolFromMolFile", ".mol": "MolFromMolFile"}


class Docking:
    """How well molecules bind to a receptor, in kcal/mol; to the guard it is one score of molecules.

    Hydrogens are added to both. Ligands are laid out in space from their SMILES, with the stereocentres that
    these leave open as RDKit draws them, and move freely; the receptor is rigid.

    Args:
        receptor: A PDB file of a protein without ligands, waters and gaps, or a PDBQT file.
        pocket: Where to search: a PDB, SDF or MOL file of a bound ligand, or its centre as `x,y,z` in
            Angstrom.
        box: Edges of the cube around that centre, above 0, in Angstrom.
        exhaustiveness: How long to search, at least 1, as Vina counts.

    Raises:
        ImportError: If Vina or Meeko is not installed.
        UsageError: If a file cannot be read as what it should be.
    """

    def __init__(self, receptor: Path, pocket: str, box: float = 20.0, exhaustiveness: int = 8):
        for name in ("vina", "meeko"):
            _library(name)
        self.centre, self.box, self.exhaustiveness = _centre(pocket), box, exhaustiveness
        self._receptor, self._vina, self._process = _receptor(Path(receptor)), None, 0

    def __call__(self, found: Any) -> float:
        search = self._search()
        search.set_ligand_from_string(ligand(found))
        search.dock(exhaustiveness=self.exhaustiveness, n_poses=1)
        return -float(search.energies(n_poses=1)[0][0])

    def _search(self) -> Any:
        """Vina with the receptor's maps, which every process makes for itself."""
        if self._vina is None or self._process != os.getpid():
            vina = _library("vina").Vina(sf_name="vina", cpu=1, seed=SEED, verbosity=0)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "receptor.pdbqt"
                path.write_text(self._receptor)
                vina.set_receptor(str(path))
            vina.compute_vina_maps(center=list(self.centre), box_size=[self.box] * 3)
            self._vina, self._process = vina, os.getpid()
        return self._vina


def ligand(found: Any) -> str:
    """A molecule laid out in space, as PDBQT.

    Raises:
        NoMoleculeError: If RDKit finds no conformation, or Meeko cannot describe it.
    """
    chem = rdkit("Chem")
    layout = rdkit("Chem.rdDistGeom")
    parts = chem.GetMolFrags(found, asMols=True)
    whole = chem.AddHs(max(parts, key=lambda part: part.GetNumHeavyAtoms()))  # salts leave their ions
    if layout.EmbedMolecule(whole, randomSeed=SEED) < 0 and layout.EmbedMolecule(
        whole, randomSeed=SEED, useRandomCoords=True
    ):
        raise NoMoleculeError("has no conformation that RDKit could find")
    force = rdkit("Chem.rdForceFieldHelpers")
    if force.MMFFHasAllMoleculeParams(whole):
        force.MMFFOptimizeMolecule(whole)
    meeko = _library("meeko")
    written, good, why = meeko.PDBQTWriterLegacy.write_string(meeko.MoleculePreparation().prepare(whole)[0])
    if not good:
        raise NoMoleculeError(f"cannot be docked ({' '.join(why.split())})")
    return written


def _receptor(path: Path) -> str:
    """A receptor as PDBQT."""
    if path.suffix == ".pdbqt":
        return _text(path)
    chem, meeko = rdkit("Chem"), _library("meeko")
    read = chem.MolFromPDBBlock(_text(path), removeHs=False)
    if read is None or not read.GetNumAtoms():
        raise UsageError(f"a receptor is a PDB or PDBQT file, but {path} holds no atoms that RDKit can read")
    templates = meeko.ResidueChemTemplates.create_from_defaults()
    named = {atom.GetPDBResidueInfo().GetResidueName().strip() for atom in read.GetAtoms()}
    if strange := sorted(named - templates.residue_templates.keys() - templates.ambiguous.keys()):
        raise UsageError(
            f"a receptor is a protein alone, but {path} also holds {', '.join(strange)}; remove ligands and"
            " waters from it, or prepare it yourself and give a PDBQT file"
        )
    for atom in read.GetAtoms():
        if atom.GetPDBResidueInfo().GetName().strip() == "OXT":
            atom.SetFormalCharge(-1)  # as it is in water, and as Meeko knows it
    chem.SanitizeMol(read)
    whole = chem.AddHs(read, addCoords=True, addResidueInfo=True)
    residue = {atom.GetIdx(): _residue(atom) for atom in whole.GetAtoms()}
    block = chem.MolToPDBBlock(chem.RenumberAtoms(whole, sorted(residue, key=residue.__getitem__)), flavor=4)
    try:
        protein = meeko.Polymer.from_pdb_string(block, templates, meeko.MoleculePreparation())
        return meeko.PDBQTWriterLegacy.write_from_polymer(protein)[0]
    except Exception as error:  # Meeko's own, of many kinds
        lines = [line.strip() for line in str(error).splitlines() if "failed for" in line]
        raise UsageError(
            f"the receptor {path} could not be prepared ({lines[0] if lines else error}); leave only whole"
            " amino acids in it, or prepare it yourself and give a PDBQT file"
        ) from None


def _residue(atom: Any) -> tuple[str, int, str]:
    info = atom.GetPDBResidueInfo()
    return info.GetChainId(), info.GetResidueNumber(), info.GetInsertionCode()


def _centre(pocket: str) -> tuple[float, float, float]:
    numbers = pocket.split(",")
    if len(numbers) == 3:
        try:
            x, y, z = map(float, numbers)
            return x, y, z
        except ValueError:
            pass
    path = Path(pocket)
    wanted = "a pocket is a PDB, SDF or MOL file of a bound ligand, or a point x,y,z in Angstrom"
    if path.suffix not in POCKETS:
        raise UsageError(f"{wanted}, but got {pocket!r}")
    _text(path)
    read = getattr(rdkit("Chem"), POCKETS[path.suffix])(str(path), sanitize=False)
    if read is None or not read.GetNumConformers():
        raise UsageError(f"{wanted}, but {path} holds no atoms that RDKit can read")
    x, y, z = read.GetConformer().GetPositions().mean(0).tolist()
    return x, y, z


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} could not be read ({error}); give a file of text") from None


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"docking needs {name}; install it with pip install 'difftilt[docking]'") from error
