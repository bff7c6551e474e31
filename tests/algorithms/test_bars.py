"""The figures that are claimed for the exact benchmark, with its own settings."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "exact.py"
    spec = importlib.util.spec_from_file_location("benchmark_exact", path)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("task", "excess"), [("gmm-x", 0.005), ("gmm-sin", 0.015)])
def test_ppo_reaches_the_best_policy_of_its_family(benchmark, task, excess):
    fixed, tuned = benchmark.run(task, "ppo", 0), benchmark.run(f"{task}-std", "ppo", 0)
    assert 0 <= fixed["excess_nats"] <= excess
    assert 0 <= tuned["gap_nats"] < fixed["gap_nats"]
