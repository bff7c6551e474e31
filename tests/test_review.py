"""Every claim of the review runs, its verdict follows from its numbers by the rule, which can say no."""

import importlib
import json
import math
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NAMES = (
    *("beyond", "similarity", "steering", "alpha-sweep", "algorithms", "coverage"),
    *("generalisation", "alpha-sensitivity", "cross-domain", "choosing-alpha", "pessimism", "tune-or-steer"),
)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.parametrize(
    "values, found",
    [
        ([0.9, 1.0, 1.1], "holds"),
        ([-0.9, -1.0, -1.1], "contradicted"),
        ([0.1, 1.0, 2.0], "undecided"),  # 1.03 +- 2.36: two standard errors would have been enough
        ([0.0, 0.0, 0.0], "undecided"),
        ([0.1], "holds"),
        ([-0.1], "contradicted"),
        ([], "not run"),
        ([math.nan, 1.0, 1.0], "undecided"),
    ],
)
def test_a_prediction_holds_where_its_interval_lies_above_zero(load, values, found):
    assert load("review_verdict").outcome(values)[2] == found


def test_the_interval_is_students(load):
    middle, half, _ = load("review_verdict").outcome([1.0, 2.0, 3.0])
    assert middle == 2 and half == pytest.approx(4.303 / math.sqrt(3))  # a deviation of 1


@pytest.mark.parametrize(
    "outcomes, verdict",
    [
        (["holds", "holds"], "confirmed"),
        (["holds", "not run"], "confirmed"),
        (["holds", "contradicted"], "conditional"),
        (["holds", "undecided"], "conditional"),
        (["contradicted", "undecided"], "refuted"),
        (["undecided", "undecided"], "conditional"),
        (["not run"], "conditional"),
    ],
)
def test_a_verdict_can_come_out_each_way(load, outcomes, verdict):
    assert load("review_verdict").verdict_of(outcomes) == verdict


def test_a_number_that_was_not_predicted_is_refused(load):
    v = load("review_verdict")
    claim = v.Claim("c", "check", "C.", {"a": v.Prediction("A", "a")}, lambda size, found: found.add("b", 1))
    with pytest.raises(ValueError, match="does not predict"):
        v.judge(claim, v.QUICK)


def test_all_claims_are_there_and_a_misspelt_one_is_answered(load, capsys):
    review = load("review")
    assert tuple(review.CLAIMS) == NAMES
    kinds = [claim.kind for claim in review.CLAIMS.values()]
    assert all(kinds.count(kind) == 3 for kind in ("mechanism", "experiment", "check", "question"))
    with pytest.raises(SystemExit):
        review.main(["beyound"])
    assert "valid are beyond, similarity" in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_runs_and_its_page_says_what_its_numbers_do(load, name, tmp_path, capsys):
    review, verdict = load("review"), load("review_verdict")
    review.main([name, "--quick", "--results", str(tmp_path), "--pages", str(tmp_path)])
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert_follows(verdict, review.CLAIMS[name], found)
    absent = {row["name"] for row in found["predictions"] if row["outcome"] == "not run"}
    assert all(key.startswith(("protein", "utr", "molecules")) for key in absent)
    assert found["quick"] and found["tables"] and found["reward_calls"] >= 0
    page = (tmp_path / f"{name}.html").read_text()
    assert found["verdict"].capitalize() in page and "means nothing" in page
    assert f"{name}: {found['verdict']}" in capsys.readouterr().out


def test_the_committed_verdicts_follow_from_their_numbers(load):
    review, verdict = load("review"), load("review_verdict")
    paths = sorted((ROOT / "benchmarks" / "results" / "review").glob("*.json"))
    for path in paths:
        found = json.loads(path.read_text())
        assert_follows(verdict, review.CLAIMS[path.stem], found)
        assert not found["quick"] and len(found["seeds"]) >= 3
        ran = [row for row in found["predictions"] if row["outcome"] != "not run"]
        assert all(len(row["values"]) == 1 or len(row["values"]) >= 3 for row in ran)
    assert paths


def assert_follows(verdict: Any, claim: Any, found: dict[str, Any]) -> None:
    """What is said follows from the values by the rule, and is about what the claim predicts today."""
    rows = {row["name"]: row for row in found["predictions"]}
    assert {name: p.says for name, p in claim.predictions.items()} == {n: r["says"] for n, r in rows.items()}
    outcomes = [verdict.outcome(row["values"])[2] for row in rows.values()]
    assert outcomes == [row["outcome"] for row in rows.values()]
    assert found["verdict"] == verdict.verdict_of(outcomes)
