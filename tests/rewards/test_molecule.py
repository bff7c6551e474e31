"""Scores of molecules, and texts that are none: each is named, and none crashes."""

import random

import pytest
import torch

from difftilt.answers import Failure
from difftilt.conditions import unconditional
from difftilt.data.chemistry import NoMoleculeError, canonical, largest, parse
from difftilt.guard import Guard
from difftilt.rewards import molecule as scores

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"
NAMED = {
    "": "is empty",
    "C1CC": "a ring that is open",
    "CC(C": "a branch that is open",
    "C[nH": "brackets that are open",
    "*CC": "a wildcard",
    "[*]": "a wildcard",
    "CN(C)(C)C": "too many bonds",
    "F[C@@H](Cl)(Br)C": "chiral atom with too many bonds",
    "c1cccc1": "bonds cannot alternate",
    "C" * 5000: "5,000 characters",
    "CC\u041e": "no sign of SMILES",  # a Cyrillic O
    "C C": "no sign of SMILES",
    "C\0C": "no sign of SMILES",
    "C((C))": "no SMILES that RDKit can read",
    "[]": "no SMILES that RDKit can read",
    "C%%": "no SMILES that RDKit can read",
    "Xx": "no SMILES that RDKit can read",
}


def hostile(count: int) -> list[str]:
    """Texts that look like SMILES: mutated, cut, repeated and strange ones."""
    rng, signs = random.Random(0), "CNOcnos()[]123%=#-+@/\\.*:$~&!?{}<>;|^'\" \t\n\u00e9\U0001f9ea\ud800"
    real = [ASPIRIN, "C[C@H](N)C(=O)O", "[13CH4]", "[2H]OC", "CN1CCC[C@H]1c1cccnc1.Cl", "C%12CCCC%12"]
    made = []
    for _ in range(count):
        text = list(rng.choice(real) * rng.choice((1, 1, 1, 2)))
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(text) + 1)
            text[place : place + rng.randint(0, 2)] = rng.choices(signs, k=rng.randint(0, 3))
        made.append("".join(text))
    return made


@pytest.mark.parametrize("text, reason", NAMED.items(), ids=range(len(NAMED)))
def test_what_is_no_molecule_is_told_why(text, reason):
    with pytest.raises(NoMoleculeError, match=reason):
        parse(text)


def test_hundreds_of_hostile_texts_have_a_score_or_a_reason(capfd):
    texts = hostile(300)
    found = [scores.scored(text, scores.druglike) for text in texts]
    reasons = [one.reason for one in found if isinstance(one, Failure)]
    numbers = [one for one in found if isinstance(one, float)]
    assert len(reasons) + len(numbers) == 300 and len(reasons) > 150 and len(numbers) > 10
    assert all(0 <= number <= 1 for number in numbers)
    assert all(reason.startswith("got a text that ") for reason in reasons)
    assert len({reason.partition("(")[0] for reason in reasons}) > 6
    assert capfd.readouterr().err == ""


def test_scores_are_those_of_known_molecules():
    aspirin, methane = parse(ASPIRIN), parse("C")
    assert scores.qed(aspirin) == pytest.approx(0.55, abs=0.01)
    assert scores.weight(aspirin) == pytest.approx(180.16, abs=0.01)
    assert scores.polar_area(aspirin) == pytest.approx(63.6, abs=0.1)
    assert scores.rotatable(aspirin) == 2
    assert 1 < scores.accessibility(aspirin) < 2
    assert scores.ease(aspirin) == pytest.approx((6 - scores.accessibility(aspirin)) / 5)
    assert scores.similarity([ASPIRIN, "CC"])(aspirin) == 1 and scores.similarity(["CCO"])(aspirin) < 0.3
    assert scores.having(["[OX2H]", "N"])(aspirin) == 0.5
    assert (scores.lacking(["N"])(aspirin), scores.lacking(["O"])(aspirin)) == (1, 0)
    assert (scores.keeping([ASPIRIN])(parse("Cc1ccccc1")), scores.keeping([ASPIRIN])(methane)) == (1, 0)
    assert (scores.no_alerts(parse("CCO")), scores.no_alerts(parse("O=CC=C"))) == (1, 0)
    with pytest.raises(ValueError, match="made of rings"):
        scores.keeping(["CCO"])
    with pytest.raises(ValueError, match="a reference is a SMILES"):
        scores.similarity(["C1CC"])


def test_a_broken_sample_earns_what_was_stated_and_nothing_unawares():
    texts = [ASPIRIN, "C1CC"]
    reward = scores.rewarding(scores.qed, lambda sample: texts)
    guard = Guard(reward, "qed", "penalty", penalty=-1.0)
    assert guard(torch.zeros(2, 1), unconditional(2)).tolist() == pytest.approx([0.55, -1], abs=0.01)
    assert guard.dropped == 1 and guard.reasons == {1: "got a text that has a ring that is open"}
    with pytest.raises(ValueError, match="a ring that is open for sample 1 of 2"):
        Guard(reward, "qed")(torch.zeros(2, 1), unconditional(2))


def test_salts_and_stereochemistry():
    assert canonical(largest(parse("CC(=O)[O-].[Na+]"))) == "CC(=O)[O-]"
    assert canonical(parse("C[C@H](N)C(=O)O"), stereo=False) == "CC(N)C(=O)O"


def test_molecules_are_alike_by_spelling_scaffold_or_fingerprint():
    texts = ["CCc1ccccc1", "c1ccccc1CC", "CCCc1ccccc1", "CCO", "C1CC", "Cc1ccncc1C"]
    alike = scores.molecules_alike(lambda sample: texts)
    names = {name: bins(torch.zeros(6, 1), []) for name, bins in alike.items()}
    ring = "CCc1ccccc1"
    assert names["same"] == [ring, ring, "CCCc1ccccc1", "CCO", None, "Cc1ccncc1C"]
    assert names["scaffold"] == ["c1ccccc1"] * 3 + ["", None, "c1ccncc1"]
    assert names["similar"] == [ring, ring, ring, "CCO", None, "Cc1ccncc1C"]
    assert alike["similar"](torch.zeros(6, 1), ["OCC", "CCCCc1ccccc1"])[2:4] == ["CCCCc1ccccc1", "OCC"]
