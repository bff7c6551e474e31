"""With `recompute` the memory of a gradient step grows with T by the stored states only."""

import gc
import importlib.util
import sys
from pathlib import Path

import problems
import pytest
import torch

from difftilt.algorithms.graphs import Graphs
from difftilt.conditions import unconditional

WIDTH = 8192


@pytest.fixture(scope="module")
def benchmark():
    path = Path(__file__).parents[2] / "benchmarks" / "memory.py"
    spec = importlib.util.spec_from_file_location("benchmark_memory", path)
    assert spec and spec.loader
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def growth(benchmark, name, recompute):
    """Peak bytes beyond the states at T = 100, divided by those at T = 10."""
    found = []
    for steps in (10, 100):
        row = benchmark.peak(name, steps, recompute, WIDTH)
        found.append(row["peak_bytes"] - row["state_bytes"])
    return found[1] / found[0]


@pytest.mark.parametrize("name", ["backprop", "trajectory-balance"])
def test_recomputing_keeps_the_states_alone(benchmark, name):
    assert growth(benchmark, name, recompute=True) < 1.1


def test_path_consistency_keeps_the_graph_of_its_small_value_network(benchmark):
    """About 4 kB for each state that it values, however large the policy is."""
    short, long = (benchmark.peak("path-consistency", steps, True, WIDTH) for steps in (10, 100))
    rows = 90 * benchmark.BATCH
    assert long["peak_bytes"] - short["peak_bytes"] < 4500 * rows


def test_without_it_the_memory_grows_with_the_steps(benchmark):
    assert growth(benchmark, "backprop", recompute=False) > 8


def test_live_bytes_are_counted_until_they_die(benchmark):
    gc.collect()
    with benchmark.LiveBytes() as count:
        x = torch.zeros(1000)
        y = x.view(10, 100)[3]
        assert (count.live, count.peak) == (4000, 4000)
        z = x + 1
        del z
        assert (count.live, count.peak) == (4000, 8000)
        del x
        assert count.live == 4000
        del y
        assert count.live == 0


def test_graphs_are_held_where_they_fit(monkeypatch):
    problem = problems.affine(dimension=2)
    policy, cond = problem.start, unconditional(3)
    asked = [Graphs(setting) for setting in (None, True, False)]
    for held, expected in ((10**9, [False, True, False]), (0, [True, True, False])):
        monkeypatch.setattr("difftilt.algorithms.graphs.HELD", held)
        for graphs in asked:
            graphs.measure(policy, cond)
        assert [graphs.recompute(rows=10) for graphs in asked] == expected
