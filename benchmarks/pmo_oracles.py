"""What is optimised in `pmo.py`: five of the 23 tasks of PMO, and how PMO counts calls and adds them up.

PMO: Gao et al. (2022), https://arxiv.org/abs/2206.12411. But for QED the tasks are those of GuacaMol (Brown
et al., 2019, https://arxiv.org/abs/1811.09621), as PyTDC 0.4.0 computes them. PyTDC 0.3.6, which PMO names,
takes the number of all atoms of an isomer from the text of its SMILES, by the rule for formulas: the 2 of a
ring in C2 is a second carbon to it. Here, as in GuacaMol, it is that of the molecule, hydrogens included.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from difftilt.answers import BudgetSpent, Failure
from difftilt.data.chemistry import parse, rdkit
from difftilt.rewards.molecule import RADIUS, Score, qed, read_or_none
from difftilt.shapes import Cond, State

CALLS, BEST, EACH = 10_000, 10, 100  # of PMO: calls in all, molecules that count, calls between measurements
CELECOXIB = "Cc1ccc(cc1)-c1cc(nn1-c1ccc(cc1)S(N)(=O)=O)C(F)(F)F"
CAMPHOR, MENTHOL = "CC1(C)C2CCC1(C)C(=O)C2", "CC(C)C1CCC(C)CC1O"


def rediscovery(target: str) -> Score:
    """Tanimoto similarity of ECFP4 that count, unfolded; 1 for the target itself.

    The reward `similarity` of the library compares bits, 2048 of them, and so is another number.
    """
    wanted = _counts(parse(target))
    alike = rdkit("DataStructs").TanimotoSimilarity
    return lambda found: alike(_counts(found), wanted)


def median(first: str, second: str) -> Score:
    """The geometric mean of the similarities to two molecules."""
    scores = [rediscovery(target) for target in (first, second)]
    return lambda found: math.prod(score(found) for score in scores) ** 0.5


def isomer(formula: str) -> Score:
    """The geometric mean of how near each element's number is, deviation 1, and that of all atoms, 2."""
    wanted = {symbol: int(number or 1) for symbol, number in re.findall(r"([A-Z][a-z]?)(\d*)", formula)}
    total = sum(wanted.values())

    def score(found: Any) -> float:
        counts = Counter(atom.GetSymbol() for atom in rdkit("Chem").AddHs(found).GetAtoms())
        away = [float(counts[symbol] - number) for symbol, number in wanted.items()]
        away.append((counts.total() - total) / 2)
        return math.exp(-sum(x * x for x in away) / 2 / len(away))

    return score


TASKS: Mapping[str, Callable[[], Score]] = {
    "qed": lambda: qed,
    "celecoxib_rediscovery": lambda: rediscovery(CELECOXIB),
    "median1": lambda: median(CAMPHOR, MENTHOL),
    "isomers_c7h8n2o2": lambda: isomer("C7H8N2O2"),
    "isomers_c9h10n2o2pf2cl": lambda: isomer("C9H10N2O2PF2Cl"),
}


class Oracle:
    """A reward that counts each molecule once, by its canonical SMILES, as PMO does.

    What is no molecule has no score and is no call, and a molecule that is known costs none; but no more than
    `asked` texts are looked at in all, so that neither is free for ever.

    Args:
        score: Of a molecule.
        spell: Writes samples as SMILES, those of molecules as RDKit writes them.
        calls: Different molecules that are scored.
        asked: Texts that are looked at, at most.

    Attributes:
        scores: Of the molecules, in the order of the calls.
        seen: How many texts were `molecule` or none, `invalid`.
    """

    def __init__(self, score: Score, spell: Callable[[State], list[str]], calls: int, asked: int):
        self.score, self.spell, self.calls, self.asked = score, spell, calls, asked
        self.scores: dict[str, float] = {}
        self.seen = Counter[str]()

    def __call__(self, sample: State, cond: Cond) -> Any:  # numbers and failures, which the guard takes apart
        return [self.ask(text) for text in self.spell(sample)]

    def ask(self, text: str) -> float | Failure:
        """The score of a SMILES, or why it has none.

        Raises:
            BudgetSpent: If it is a new molecule, or one more text, and the last one is spent.
        """
        found = read_or_none(text)
        new = found is not None and text not in self.scores
        if self.seen.total() >= self.asked or (new and len(self.scores) >= self.calls):
            raise BudgetSpent(f"{len(self.scores)} molecules among {self.seen.total()} texts were scored")
        self.seen["invalid" if found is None else "molecule"] += 1
        if found is None:
            return Failure("is no molecule")
        if new:
            self.scores[text] = self.score(found)
        return self.scores[text]


def top_curve(scores: list[float], calls: int) -> list[float]:
    """The mean of the best ten after 0, 100, 200, ... calls; what ended early stays as it was."""
    marks = range(EACH, calls + 1, EACH)
    return [0.0, *(_best(scores[:mark]) for mark in marks)]


def area(curve: list[float]) -> float:
    """The area under such a curve by trapezoids, as a share of that under 1."""
    return (sum(curve) - (curve[0] + curve[-1]) / 2) / (len(curve) - 1)


def _best(scores: list[float]) -> float:
    best = sorted(scores, reverse=True)[:BEST]
    return sum(best) / len(best) if best else 0.0


def _counts(found: Any) -> Any:
    generator = rdkit("Chem.rdFingerprintGenerator").GetMorganGenerator(RADIUS)
    return generator.GetSparseCountFingerprint(found)
