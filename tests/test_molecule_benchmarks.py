"""What the benchmarks of molecules measure is what their sources define."""

import importlib
import math
from pathlib import Path

import numpy as np
import pytest

from difftilt.answers import BudgetSpent, Failure
from difftilt.data.chemistry import parse
from difftilt.rewards.molecule import similarity

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_a_target_is_rediscovered_by_counts_not_by_bits(load):
    oracles = load("pmo_oracles")
    score = oracles.TASKS["celecoxib_rediscovery"]()
    assert score(parse(oracles.CELECOXIB)) == 1
    assert score(parse(ASPIRIN)) == pytest.approx(11 / 95)  # AllChem.GetMorganFingerprint, as PyTDC compares
    assert similarity([oracles.CELECOXIB])(parse(ASPIRIN)) != pytest.approx(11 / 95, abs=0.01)


def test_a_median_is_the_geometric_mean_of_two_similarities(load):
    oracles = load("pmo_oracles")
    camphor = parse(oracles.CAMPHOR)
    between = oracles.rediscovery(oracles.MENTHOL)(camphor)
    assert 0 < between < 1
    assert oracles.TASKS["median1"]()(camphor) == pytest.approx(math.sqrt(between))


@pytest.mark.parametrize(
    "task, smiles, found",
    [
        ("isomers_c7h8n2o2", "Cc1nc(C(=O)O)ccc1N", 1.0),
        ("isomers_c7h8n2o2", "CC1NC(C(=O)O)=CC=C1N", math.exp(-(2**2 + 1**2) / 2 / 5)),  # two H more: 1 of 2
        ("isomers_c7h8n2o2", "Cc1cc(C(=O)O)ccc1N", math.exp(-(1 + 1 + 1 + 0.5**2) / 2 / 5)),  # C8H9NO2
        # the best without phosphorus, which the vocabulary of MOSES lacks: another atom of one bond stands in
        ("isomers_c9h10n2o2pf2cl", "NC(CBr)c1c(F)c(F)c(N)c(CO)c1OCl", math.exp(-1 / 16)),
    ],
)
def test_isomers_are_judged_by_their_atoms(load, task, smiles, found):
    assert load("pmo_oracles").TASKS[task]()(parse(smiles)) == pytest.approx(found)


def test_calls_are_molecules_that_are_new(load):
    oracle = load("pmo_oracles").Oracle(lambda found: found.GetNumAtoms() / 10, list, calls=2, asked=6)
    first, none, again = oracle(["CC", "C1CC", "CC"], {})
    assert first == again == 0.2
    assert isinstance(none, Failure)
    assert oracle.seen == {"molecule": 2, "invalid": 1}
    assert oracle.ask("CCC") == 0.3
    with pytest.raises(BudgetSpent, match="2 molecules among 4 texts"):
        oracle.ask("CCCC")
    assert oracle.ask("CC") == 0.2
    oracle.ask("C1CC")
    with pytest.raises(BudgetSpent, match="6 texts"):
        oracle.ask("CC")
    assert oracle.scores == {"CC": 0.2, "CCC": 0.3}


def test_the_area_is_that_below_the_mean_of_the_best_ten(load):
    oracles = load("pmo_oracles")
    curve = oracles.top_curve([0.5] * 100 + [1.0] * 5 + [0.1] * 95, calls=1000)
    assert curve == [0, 0.5, *[0.75] * 9]  # five of one and five of a half; nothing is found later
    assert oracles.area(curve) == pytest.approx((0.25 + 0.625 + 8 * 0.75) / 10)
    assert oracles.area(oracles.top_curve([], calls=1000)) == 0


def test_the_frechet_distance_is_that_of_normal_distributions(load):
    distance = load("molecules_fcd").distance
    x = np.random.default_rng(0).normal(size=(500, 3)) @ np.diag([1.0, 2.0, 3.0])
    assert distance(x, x) == pytest.approx(0, abs=1e-9)
    assert distance(x, x + [1, 2, 2]) == pytest.approx(9)
    centred = x - x.mean(0)
    assert distance(centred, 3 * centred) == pytest.approx(4 * np.trace(np.cov(x.T)))  # (3 - 1)^2 tr C
