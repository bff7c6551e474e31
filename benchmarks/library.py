"""How close every algorithm comes to the exact optimum on a library of molecules, all of which were scored.

    python benchmarks/library.py [qed likeness] [--methods vargrad ppo ...] [--seeds 0 1 2] [--seconds 30]

An indole with four places, each of which takes one of 16 groups: 65,536 molecules, and 83,521 states of the
masked chain, so that J*, p_r and J of any policy are sums. The model was pretrained on the half that scores
lowest. `qed` is drug-likeness. `likeness` stands for a docking score: the similarity of fingerprints to one
molecule of the library, which no method sees, and which few molecules share; it comes as a table. Results are
as those of `landscape.py`, in results/library/REWARD-lower-ALPHA.json.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import landscape
import torch

from difftilt.data.chemistry import rdkit
from difftilt.data.landscape import Landscape, make_landscape
from difftilt.domains.landscape.model import chain_of
from difftilt.rewards.molecule import molecule, qed

RESULTS = Path(__file__).parent / "results" / "library"
CORE = "n1({0})cc({1})c2cc({2})c({3})cc12"
ON_CARBON = (
    "[H]", "C", "CC", "C(C)C", "C3CC3", "F", "Cl", "C(F)(F)F", "O", "OC", "N", "N(C)C", "C#N", "C(=O)N",
    "S(=O)(=O)C", "c3ccccc3",
)  # fmt: skip
ON_NITROGEN = (
    "[H]", "C", "CC", "C(C)C", "C3CC3", "CC3CC3", "CCO", "CCOC", "CCN(C)C", "CC(=O)N", "CC(=O)O", "CC#N",
    "S(=O)(=O)C", "Cc3ccccc3", "c3ccncc3", "CCN3CCOCC3",
)  # fmt: skip
LETTERS = "ABCDEFGHIJKLMNOP"
HIDDEN = 55_254  # the molecule that `likeness` compares with: the groups 13, 7, 13 and 6
ALPHAS = {"qed": 0.02, "likeness": 0.02}


def molecules() -> list[str]:
    """The SMILES of all, the last place varying fastest."""
    return [CORE.format(*groups) for groups in itertools.product(ON_NITROGEN, *[ON_CARBON] * 3)]


def likeness() -> Callable[[Any], float]:
    """Tanimoto similarity of Morgan fingerprints that count, of radius 2, to the hidden molecule."""
    maker = rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(radius=2)
    alike = rdkit("DataStructs").TanimotoSimilarity
    hidden = maker.GetCountFingerprint(molecule(molecules()[HIDDEN]))
    return lambda found: alike(maker.GetCountFingerprint(found), hidden)


def library(reward: str) -> Landscape:
    """The score of every molecule, scaled to [0, 1]."""
    score = {"qed": qed, "likeness": likeness()}[reward]
    scores = [score(molecule(smiles)) for smiles in molecules()]
    spelled = ["".join(letters) for letters in itertools.product(LETTERS, repeat=4)]
    return make_landscape("library", LETTERS, spelled, scores, f"{reward} of an indole's substituents")


def main() -> None:
    parser = landscape.options(__doc__, seconds=30)
    parser.add_argument("rewards", nargs="*", metavar="REWARD", default=list(ALPHAS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for reward in asked.rewards:
        table, alpha = library(reward), ALPHAS[reward]
        path = asked.models / f"library-{reward}.safetensors"
        network = landscape.pretrained(table, table.lower_half(), path)
        chain = chain_of(network.requires_grad_(False), table)
        problem = landscape.Problem(f"{reward}-lower-{alpha}", table, chain, alpha)
        landscape.tune(problem, RESULTS, asked)


if __name__ == "__main__":
    main()
