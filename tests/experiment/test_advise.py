"""Advice: every rule has its case, every command runs, and every figure was measured."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from difftilt.algorithms.choices import make_algorithm
from difftilt.cli.main import main
from difftilt.cli.options import parse
from difftilt.domains.digits.recipe import digits
from difftilt.experiment.advise import RULES, Facts, advise, read_evidence

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CASES = [
    ({"rare": True, "calls": 5000}, "local-search"),
    ({"differentiable": True, "trusted": False}, "adjoint-matching"),
    ({"differentiable": True, "memory_gib": 24.0, "model_gib": 16.0}, "adjoint-matching"),
    ({"differentiable": True, "memory_gib": 80.0, "model_gib": 16.0}, "backprop"),
    ({"reward_seconds": 30.0, "hours": 10.0}, "ppo"),
    ({"trusted": False}, "ppo"),
    ({}, "ppo"),
]


@pytest.mark.parametrize(("facts", "algorithm"), CASES)
def test_each_rule_has_a_case(facts, algorithm):
    assert advise(Facts(**facts), "digits").algorithm == algorithm


def test_the_cases_meet_every_rule_once():
    first = [next(i for i, rule in enumerate(RULES) if rule.applies(Facts(**facts))) for facts, _ in CASES]
    assert first == list(range(len(RULES)))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{RULES.index(rule)}-{rule.algorithm}")
def test_a_rule_names_an_algorithm_and_gives_two_sentences(rule):
    make_algorithm(rule.algorithm)
    assert rule.reason.count(". ") == 1 and rule.reason.endswith(".")


@pytest.mark.parametrize(
    "facts", [facts for facts, _ in CASES] + [{"calls": 8}, {"calls": 41}, {"calls": 3000}], ids=str
)
def test_the_command_is_accepted_and_stays_within_the_budget(facts):
    words = shlex.split(advise(Facts(**facts), "digits").command)
    assert words[:3] == ["difftilt", "finetune", "digits"]
    training = parse(digits, words[3:], "difftilt")["training"]
    calls = training.rounds * training.batch + 2 * training.evaluate
    assert calls <= Facts(**facts).affordable
    assert training.rounds >= 2 and training.batch >= 2


def test_the_command_can_be_played(capsys):
    words = shlex.split(advise(Facts(calls=41), "digits").command)
    main([*words[1:], "--dry-run", "--steps", "4"])
    assert json.loads(capsys.readouterr().out)["plan"]["reward_calls"] <= 41


def test_slow_rewards_are_told_by_the_network():
    assert "epochs 4" in advise(Facts(reward_seconds=1.0, network_seconds=0.01), "digits").command
    assert advise(Facts(reward_seconds=1.0, network_seconds=0.1), "digits").algorithm == "ppo"


@pytest.fixture
def gather():
    """The function of benchmarks/evidence.py."""
    spec = importlib.util.spec_from_file_location("evidence", BENCHMARKS / "evidence.py")
    if spec is None or spec.loader is None:
        pytest.fail("benchmarks/evidence.py is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.gather


def test_the_evidence_is_that_of_the_benchmarks(gather):
    assert read_evidence() == gather(BENCHMARKS / "results")["algorithms"], "run it again"


def test_too_small_a_budget_is_refused():
    with pytest.raises(ValueError, match="allows 4 reward calls, but learning takes at least 8"):
        advise(Facts(reward_seconds=900.0, hours=1.0), "digits")


def test_the_gathered_means_are_means_over_seeds(tmp_path, gather):
    exact = [{"task": "a", "algorithm": "ppo", "seed": k, "excess_nats": 0.1 * k} for k in range(3)]
    digits = [
        {"task": "b", "algorithm": "ppo", "seed": k, "reward": -k, "network_calls": {"f": 2, "b": k}}
        for k in (0, 1)
    ]
    (tmp_path / "exact.json").write_text(json.dumps({"rows": exact}))
    (tmp_path / "digits_equal_kl.json").write_text(json.dumps({"rows": digits}))
    found = gather(tmp_path)["algorithms"]["ppo"]
    assert found["exact"]["a"] == {"excess_nats": pytest.approx(0.1), "seeds": 3}
    assert found["digits"]["b"] == {"reward": -0.5, "network_calls": 2.5, "seeds": 2}
    text = str(advise(Facts(), "digits", {"ppo": found}))
    assert "a: excess 0.1000 nats" in text and "b: reward -0.5, network calls 2.5" in text
    assert "nothing yet" in str(advise(Facts(), "digits", {}))
