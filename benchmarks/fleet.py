"""Fleets of reward workers, from 10^2 to 10^5 of them, simulated from what a few of ours were seen to cost.

What the driver, a worker and the replacing of a dead one cost is measured with calls of constant length. With
these three numbers the simulation predicts how long one, two and four workers take for calls of heavy-tailed
length, of which some die or hang; that is held against real runs. Then fleets are simulated whose calls have
the same distribution, but a mean of a minute.

    python benchmarks/fleet.py [--only TASK ...] [--workers N ...] [--out FILE.json]
"""

import argparse
import gc
import heapq
import json
import math
import os
import platform
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from difftilt.conditions import unconditional
from difftilt.rewards.ray_cluster import Placement
from difftilt.rewards.workers import Workers

MEDIAN, SPREAD = 0.03, 1.0  # of real calls: seconds, and the deviation of their logarithm
LIMIT = 0.6  # seconds that they may take
DEATHS = 0.03  # share of attempts that end the worker's process, at their end
MEAN = 60.0  # seconds of a call in the simulated fleets
SLOW, SLOWER = 0.02, 5.0  # share of workers that are stragglers, and how much longer they take
ROUNDS = 10  # calls per worker that are counted
FLIGHT = (0.5, 1.0, 1.25, 2.0, 4.0, 8.0)  # chains in flight per worker


@dataclass(frozen=True)
class Fleet:
    """Workers, and how they are asked.

    Args:
        workers: Their number.
        flight: Chains whose rewards are asked for at any time.
        barrier: Whether new ones are drawn only when all of them have their rewards: those in flight are one
            batch of the same policy.
        driver: Seconds that the asking process spends on each chain, half when it sends it and half when it
            takes its reward, one after the other.
        overhead: Seconds that a call takes longer in a worker.
        replace: Seconds until a worker that died, or was killed at its time limit, is replaced.
        deaths: Share of attempts that end the process; they are made again.
        slow: Share of workers that are stragglers.
        slower: How much longer they take.
        limit: Seconds that a call may take; the chain has no reward then.
    """

    workers: int
    flight: int
    barrier: bool = False
    driver: float = 0.0
    overhead: float = 0.0
    replace: float = 0.0
    deaths: float = 0.0
    slow: float = 0.0
    slower: float = 1.0
    limit: float = math.inf


@dataclass(frozen=True)
class Seen:
    """What happened, chain by chain, in the order in which the driver had their rewards.

    Args:
        done: When it had each, in seconds.
        ended: When its call did, of which the driver may take note later.
        before: How many it had when each was drawn.
        busy: Seconds that the call took.
    """

    done: list[float]
    ended: list[float]
    before: list[int]
    busy: list[float]

    def stale(self, batch: int) -> np.ndarray:
        """Policy updates between the drawing of each chain and the update that uses it."""
        return np.arange(len(self.done)) // batch - np.array(self.before) // batch


def simulate(
    fleet: Fleet,
    count: int,
    seconds: Iterator[float],
    dies: Iterator[bool],
    again: bool = True,
    seed: int = 0,
) -> Seen:
    """Simulates so many chains, event by event.

    Workers take what waits in the order in which it was sent. Drawing chains and updating the policy take no
    time, and neither does the network.

    Args:
        seconds: What the next attempt takes.
        dies: Whether it ends its process.
        again: Whether it is made again then; else its chain has no reward.
        seed: Of which workers are stragglers.
    """
    rng = np.random.default_rng(seed)
    pace = np.where(rng.random(fleet.workers) < fleet.slow, fleet.slower, 1.0).tolist()
    idle = [(0.0, worker) for worker in range(fleet.workers)]  # since when
    running: list[tuple[float, int, int, float]] = []  # until when, who, done before, seconds if it lives
    waiting: deque[tuple[float, int]] = deque()  # since when, done before
    seen, driver = Seen([], [], [], []), 0.0

    def begin(now: float, worker: int, before: int) -> None:
        took = min(next(seconds) * pace[worker] + fleet.overhead, fleet.limit)
        heapq.heappush(running, (now + took, worker, before, -1.0 if next(dies) else took))

    def send(at: float, before: int) -> None:
        if idle:
            since, worker = heapq.heappop(idle)
            begin(max(since, at), worker, before)
        else:
            waiting.append((at, before))

    sent = min(fleet.flight, count)
    for _ in range(sent):
        driver += fleet.driver / 2
        send(driver, 0)
    while len(seen.done) < count:
        now, worker, before, took = heapq.heappop(running)
        free = now + (fleet.replace if took < 0 or took == fleet.limit else 0.0)
        if took < 0 and again:
            waiting.appendleft((now, before))
        if waiting:
            since, other = waiting.popleft()
            begin(max(free, since), worker, other)
        else:
            heapq.heappush(idle, (free, worker))
        if took < 0 and again:
            continue
        driver = max(driver, now) + fleet.driver / 2
        seen.done.append(driver)
        seen.ended.append(now)
        seen.before.append(before)
        seen.busy.append(max(took, 0.0))
        due = 1 if not fleet.barrier else 0 if len(seen.done) % fleet.flight else fleet.flight
        for _ in range(min(due, count - sent)):
            driver += fleet.driver / 2
            send(driver, len(seen.done))
            sent += 1
    return seen


def main() -> None:
    tasks: dict[str, Callable[[argparse.Namespace, dict[str, float]], list[dict[str, Any]]]] = {
        "check": check,
        "fleets": fleets,
    }
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tasks, default=list(tasks))
    parser.add_argument("--workers", nargs="+", type=int, default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.disable()  # millions of events would be looked through again and again
    costs = measured_costs()
    rows = [{"task": "costs", "load_before": round(os.getloadavg()[0], 2)} | costs]
    for name in options.only:
        load = round(os.getloadavg()[0], 2)
        for row in tasks[name](options, costs):
            rows.append({"task": name, "load_before": load} | row)
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        options.out.write_text(json.dumps(machine | versions | {"rows": rows}, indent=1) + "\n")


def waits(x: torch.Tensor, cond: Any) -> torch.Tensor:
    """Takes the seconds that a sample says, and ends its process if the sample says so."""
    time.sleep(float(x[0, 0]))
    if x[0, 1]:
        os._exit(3)
    return x[:, 0]


def timed(workers: Workers, x: torch.Tensor) -> tuple[float, float]:
    """Seconds of a batch, and those of this process's core."""
    start, busy = time.perf_counter(), time.process_time()
    workers(x, unconditional(len(x)))
    return time.perf_counter() - start, time.process_time() - busy


def measured_costs(samples: int = 60, repeats: int = 5, call: float = 0.05) -> dict[str, float]:
    """What a chain costs beside its call, by calls of equal length: medians over repeats.

    The asking process is measured with 16 workers, for what they say is heard together where there are many.
    """
    plain, dying = torch.tensor([[call, 0.0]] * samples), torch.tensor([[call, 1.0]] * (samples // 3))
    found: dict[str, list[float]] = {"driver": [], "overhead": [], "replace": [], "driver_of_ray": []}
    with (
        Workers(waits, 1, 60.0) as one,
        Workers(waits, 16, 60.0) as many,
        Workers(waits, Placement("ray://16"), 60.0) as rays,
    ):
        for workers in (one, many, rays):
            timed(workers, plain[:16])
        for _ in range(repeats):
            seconds, _ = timed(one, plain)
            found["overhead"].append(seconds / samples - call)
            found["replace"].append(timed(one, dying)[0] / len(dying) - seconds / samples)
            for name, workers in (("driver", many), ("driver_of_ray", rays)):
                found[name].append(timed(workers, plain.repeat(8, 1))[1] / samples / 8)
    return {name: statistics.median(values) for name, values in found.items()}


def attempts(rng: np.random.Generator, count: int, deaths: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of calls in units of their median, and which of them end their process."""
    return rng.lognormal(0.0, SPREAD, count), rng.random(count) < deaths


def check(options: argparse.Namespace, costs: dict[str, float]) -> list[dict[str, Any]]:
    """Real batches by one, two and four workers, in turn, and what was predicted of each."""
    samples, repeats, rows = 240, 3, []
    for repeat in range(repeats):
        lengths, dies = attempts(np.random.default_rng(repeat), samples, DEATHS)
        lengths = lengths * MEDIAN
        x = torch.tensor(np.stack([lengths, dies], 1))
        for count in (1, 2, 4):
            with Workers(waits, count, LIMIT) as workers:
                timed(workers, torch.zeros(2 * count, 2))
                seconds, _ = timed(workers, x)
            fleet = Fleet(count, samples, barrier=True, limit=LIMIT, **constants(costs, "driver"))
            # a real sample whose process ended is not asked about again
            predicted = simulate(fleet, samples, iter(lengths), iter(dies), again=False).done[-1]
            rows.append(
                {
                    "workers": count, "samples": samples, "repeat": repeat, "seconds": seconds,
                    "predicted_seconds": predicted, "ratio": predicted / seconds,
                }
            )  # fmt: skip
    return rows


def constants(costs: dict[str, float], driver: str) -> dict[str, float]:
    """What a fleet costs, whose driver sends to processes of its own or through Ray."""
    return {"driver": costs[driver], "overhead": costs["overhead"], "replace": costs["replace"]}


def fleets(options: argparse.Namespace, costs: dict[str, float]) -> list[dict[str, Any]]:
    """Every number of workers and of chains in flight, with a barrier and without."""
    rows = []
    for workers in options.workers:
        rows += [fleet_row(costs, workers, share, barrier=True) for share in (1, 4, 16)]
        rows += [fleet_row(costs, workers, share, barrier=False) for share in FLIGHT]
    return rows


def fleet_row(costs: dict[str, float], workers: int, share: float, barrier: bool) -> dict[str, Any]:
    """One fleet, while it is full."""
    scale, flight = MEAN / math.exp(SPREAD**2 / 2), round(share * workers)
    fleet = Fleet(
        workers, flight, barrier, deaths=DEATHS, slow=SLOW, slower=SLOWER, limit=LIMIT / MEDIAN * scale,
        **constants(costs, "driver_of_ray"),
    )  # fmt: skip
    rounds = max(2, ROUNDS // share)  # of a barrier, all of which are counted
    count = round(rounds * flight) if barrier else ROUNDS * workers + 2 * flight
    counted = slice(0, count) if barrier else slice(flight, count - flight)
    lengths, dies = attempts(np.random.default_rng(0), 2 * count, DEATHS)
    start = time.perf_counter()
    seen = simulate(fleet, count, iter((lengths * scale).tolist()), iter(dies.tolist()))
    took = time.perf_counter() - start
    done, ended, busy = np.array(seen.done), np.array(seen.ended), np.array(seen.busy)
    begins, ends = 0.0 if barrier else done[counted][0], done[counted][-1]
    rate = len(done[counted]) / (ends - begins)
    worked = (np.minimum(ended, ends) - np.maximum(ended - busy, begins)).clip(0)
    stale = {batch: seen.stale(batch)[counted] for batch in sorted({256, workers})}
    return asdict(fleet) | {
        "chains": count, "chains_per_second": float(rate), "driver_share": float(rate * fleet.driver),
        "utilisation": float(worked.sum()) / (ends - begins) / workers,
        "stale": {
            str(batch): {
                "mean": float(found.mean()), "p95": float(np.quantile(found, 0.95)), "max": int(found.max()),
            }
            for batch, found in stale.items()
            if not barrier
        },
        "simulated_in_seconds": took,
    }  # fmt: skip


if __name__ == "__main__":
    main()
