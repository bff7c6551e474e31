"""Docking: a peptide that the test lays out in space stands for a receptor."""

import time

import pytest
import torch

from difftilt.answers import Failure
from difftilt.conditions import unconditional
from difftilt.domains.molecules.recipe import rewards
from difftilt.guard import Guard
from difftilt.rewards.docking import Docking
from difftilt.rewards.molecule import molecule, scored
from difftilt.rewards.workers import Workers
from difftilt.settings import UsageError

pytest.importorskip("vina", reason="needs the extra docking")
CENTRE = "0,0,0"
ATOM = "    1  CA  {} A   1       0.0     0.0     0.0  1.00  0.00           C\n"


@pytest.fixture(scope="module")
def receptor(tmp_path_factory):
    """A PDB file, of heavy atoms as crystals show them."""
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom

    peptide = Chem.AddHs(Chem.MolFromSequence("GFSWKA"), addResidueInfo=True)
    assert rdDistGeom.EmbedMolecule(peptide, randomSeed=1, useRandomCoords=True) == 0
    path = tmp_path_factory.mktemp("receptor") / "peptide.pdb"
    path.write_text(Chem.MolToPDBBlock(Chem.RemoveHs(peptide), flavor=4))
    return path


def test_a_molecule_has_one_score_in_any_process_and_larger_ones_bind_better(receptor):
    score = Docking(receptor, CENTRE, box=12.0, exhaustiveness=1)
    small, large, again = (score(molecule(smiles)) for smiles in ("CO", "Cc1ccccc1O", "CO"))
    assert small == again and 0 < small < large
    with Workers(lambda x, cond: [score(molecule("CO"))] * len(x), 1, 60.0) as workers:
        assert workers(tokens(1), unconditional(1)) == pytest.approx([small])


def test_a_bound_ligand_says_where_the_pocket_is(receptor, tmp_path):
    from rdkit import Chem
    from rdkit.Chem import rdDistGeom, rdMolTransforms

    bound = Chem.AddHs(Chem.MolFromSmiles("CCO"))
    rdDistGeom.EmbedMolecule(bound, randomSeed=1)
    rdMolTransforms.CanonicalizeConformer(bound.GetConformer(), ignoreHs=False)
    path = tmp_path / "bound.sdf"
    path.write_text(Chem.MolToMolBlock(bound))
    assert Docking(receptor, str(path)).centre == pytest.approx((0, 0, 0), abs=1e-3)


def tokens(count):
    return torch.arange(count)[:, None]


@pytest.mark.parametrize(
    ("file", "pocket", "told"),
    [
        (None, CENTRE, "could not be read"),
        ("no atoms\n", CENTRE, "holds no atoms that RDKit can read"),
        (f"HETATM{ATOM.format('LIG')}", CENTRE, "also holds LIG"),
        (f"ATOM  {ATOM.format('GLY')}", CENTRE, "prepared"),
        (
            "",
            "1,2",
            "a pocket is a PDB, SDF or MOL file of a bound ligand, or a point x,y,z in Angstrom, but",
        ),
        ("", "nowhere.sdf", "could not be read"),
    ],
)
def test_what_cannot_be_docked_into_is_told(file, pocket, told, tmp_path):
    path = tmp_path / "receptor.pdb"
    if file is not None:
        path.write_text(file)
    with pytest.raises(UsageError, match=told):
        Docking(path, pocket)


def test_what_the_recipe_needs_for_docking_is_told(tmp_path):
    for receptor, pocket, missing in ((None, CENTRE, "--receptor"), (tmp_path, None, "--pocket")):
        given = {"receptor": receptor, "pocket": pocket, "box": 20.0, "exhaustiveness": 8}
        with pytest.raises(UsageError, match=f"docking needs {missing}"):
            rewards("docking", given, lambda x: [])


def test_what_is_no_molecule_fails_alone(receptor):
    score = Docking(receptor, CENTRE, box=12.0, exhaustiveness=1)
    found = scored("c1cccc1", score)
    assert isinstance(found, Failure) and "aromatic" in found.reason


@pytest.mark.slow
def test_of_twenty_molecules_one_hangs_and_nineteen_are_ranked(receptor):
    score = Docking(receptor, CENTRE, box=14.0, exhaustiveness=1)
    names = ["C" * n + "O" for n in range(1, 11)] + ["c1ccccc1" + "C" * n for n in range(10)]

    def hangs(x, cond):
        for row in x[:, 0].tolist():
            if row == 7:
                time.sleep(1000)
        return [score(molecule(names[row])) for row in x[:, 0].tolist()]

    with Workers(hangs, 2, 60.0) as workers:
        guard = Guard(workers, on_error="drop", max_failures=0.1)
        found = guard(tokens(20), unconditional(20))
    assert found.isfinite().sum() == 19 and not found[7].isfinite()
    ranked = found.nan_to_num(-1e9).argsort(descending=True)[:19].tolist()
    assert 7 not in ranked and guard.dropped == 1 and guard.calls == 20
