"""Molecules as numbers that a network learns from: how often each of their surroundings occurs."""

from collections.abc import Sequence

import numpy as np
import torch

from difftilt.data.chemistry import rdkit
from difftilt.rewards.molecule import RADIUS, molecule
from difftilt.shapes import Sequences

WIDE = 1024  # numbers per molecule


def prints(texts: Sequence[str]) -> Sequences:
    """Counts of Morgan fingerprints, folded: one row per SMILES.

    Raises:
        NoMoleculeError: If one of them is no molecule.
    """
    generator = rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(radius=RADIUS, fpSize=WIDE)
    counts = [generator.GetCountFingerprintAsNumPy(molecule(text)).astype("int64") for text in texts]
    return torch.from_numpy(np.stack(counts)) if counts else torch.zeros(0, WIDE, dtype=torch.long)
