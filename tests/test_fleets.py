"""The simulation of fleets, where what happens is known exactly."""

import importlib
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ALIVE = itertools.repeat(False)


@pytest.fixture
def fleet(monkeypatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("fleet")


def test_equal_calls_fill_every_worker(fleet):
    seen = fleet.simulate(fleet.Fleet(10, 10), 100, itertools.repeat(2.0), ALIVE)
    assert seen.done[-1] == 20 and seen.done == sorted(seen.done)
    waits = fleet.simulate(fleet.Fleet(10, 11, barrier=True), 110, itertools.repeat(1.0), ALIVE)
    assert waits.done[-1] == 20  # the eleventh of each batch is alone


def test_chains_are_as_stale_as_what_was_in_flight_before_them(fleet):
    seen = fleet.simulate(fleet.Fleet(10, 40), 400, itertools.repeat(1.0), ALIVE)
    assert set(np.arange(40, 400) - np.array(seen.before[40:])) == {39}  # all others of the 40 come first
    assert set(seen.stale(40)[40:]) == {0, 1} and set(seen.stale(10)[40:]) == {3, 4}
    batches = fleet.simulate(fleet.Fleet(10, 20, barrier=True), 100, itertools.repeat(1.0), ALIVE)
    assert set(batches.stale(20)) == {0}


def test_the_driver_is_the_limit_of_large_fleets(fleet):
    alone = fleet.simulate(fleet.Fleet(1, 1, driver=0.2), 100, itertools.repeat(1.0), ALIVE)
    assert math.isclose(alone.done[-1], 100 * 1.2)
    ahead = fleet.simulate(fleet.Fleet(1, 2, driver=0.2), 100, itertools.repeat(1.0), ALIVE)
    assert math.isclose(ahead.done[-1], 100 + 0.2)
    many = fleet.simulate(fleet.Fleet(100, 200, driver=0.2), 1000, itertools.repeat(1.0), ALIVE)
    assert math.isclose(many.done[-1], 1000 * 0.2, rel_tol=0.01)


def test_a_barrier_waits_for_the_longest_of_exponential_calls(fleet):
    """The largest of n exponential times has the mean 1 + 1/2 + ... + 1/n (Renyi, 1953)."""
    rounds, workers = 4000, 8
    count = rounds * workers
    calls = np.random.default_rng(0).exponential(1.0, count).tolist()
    seen = fleet.simulate(fleet.Fleet(workers, workers, barrier=True), count, iter(calls), ALIVE)
    each = np.diff([0.0, *seen.done[workers - 1 :: workers]])
    harmonic = sum(1 / k for k in range(1, workers + 1))
    assert abs(each.mean() - harmonic) < 4 * each.std() / math.sqrt(rounds)


def test_the_dead_are_replaced_and_their_calls_made_again_unless_they_are_failures(fleet):
    one = fleet.Fleet(1, 1, replace=3.0)
    dies = [False, True, False, False]
    seen = fleet.simulate(one, 3, itertools.repeat(1.0), iter(dies))
    assert seen.done == [1.0, 6.0, 7.0] and seen.busy == [1.0] * 3
    seen = fleet.simulate(one, 3, itertools.repeat(1.0), iter(dies), again=False)
    assert seen.done == [1.0, 2.0, 6.0] and seen.busy == [1.0, 0.0, 1.0]
    late = fleet.Fleet(1, 1, limit=5.0, replace=3.0, overhead=0.5)
    assert fleet.simulate(late, 2, iter([9.0, 1.0]), ALIVE).done == [5.0, 9.5]


def test_stragglers_are_as_slow_as_they_are_said_to_be(fleet):
    found = fleet.Fleet(1000, 1000, barrier=True, slow=0.3, slower=4.0)
    seen = fleet.simulate(found, 1000, itertools.repeat(1.0), ALIVE)
    assert set(seen.busy) == {1.0, 4.0} and 250 < seen.busy.count(4.0) < 350
