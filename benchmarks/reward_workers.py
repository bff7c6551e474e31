"""What processes for rewards cost under faults, for a slow reward and a free one, and what overlap gains.

The faults are exceptions, hanging, exits, crashes, hunger for memory, and answers that are none, in turn.
They are held against the ideal schedule, which gives each sample to the first worker that is free, at no cost
for noticing, restarting and sending. On a busy machine the calls themselves take longer, in plain processes
too: what they take there is measured as well, and the load before each task is written down.

    python benchmarks/reward_workers.py [--only TASK ...] [--calls N] [--out FILE.json]
"""

import argparse
import collections
import ctypes
import heapq
import json
import math
import multiprocessing
import os
import platform
import secrets
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from difftilt import PPO, Objective, fit
from difftilt.answers import Failure
from difftilt.conditions import take, unconditional
from difftilt.domains.digits.model import asked, digits_policy
from difftilt.guard import Guard
from difftilt.rewards.ledger import Ledger, Recorded
from difftilt.rewards.ray_cluster import Placement
from difftilt.rewards.scoring import Scoring, guarded
from difftilt.rewards.workers import Workers

WORK, LIMIT = 0.05, 0.5  # seconds that each call of the faulty reward takes, and may take
FAULTS: dict[str, Callable[[], Any]] = {
    "raised OSError (busy)": lambda: (_ for _ in ()).throw(OSError("busy")),
    f"took longer than {LIMIT:g} s": lambda: time.sleep(1000),
    "raised SystemExit (1)": lambda: sys.exit(1),
    "ended its process with code 3": lambda: os._exit(3),
    "ended its process with code 139 (SIGSEGV)": lambda: ctypes.string_at(0),
    "returned None instead of one number": lambda: None,
    "returned nan": lambda: [math.nan],
    "returned shape (2,) instead of (1,)": lambda: torch.ones(2),
    "raised MemoryError ()": lambda: [float(len(bytearray(10**9)))],
}


def main() -> None:
    tasks: dict[str, Callable[[argparse.Namespace], Any]] = {
        "faults": faults,
        "throughput": throughput,
        "overhead": overhead,
        "overlap": overlap,
        "ray": ray,
    }
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=tasks, default=list(tasks))
    parser.add_argument("--calls", type=int, default=10_000, help="under faults")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.only:
        load = os.getloadavg()[0]
        found = tasks[name](options)
        for result in found if isinstance(found, list) else [found]:
            rows.append({"task": name, "load_before": round(load, 2)} | result)
            print(json.dumps(rows[-1], indent=1), flush=True)
    if options.out:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        options.out.write_text(json.dumps(machine | versions | {"rows": rows}, indent=1) + "\n")


def faulty(x: torch.Tensor, cond: Any) -> Any:
    time.sleep(WORK)
    fault = int(x[0, 1])
    return x[:, 0] if fault < 0 else list(FAULTS.values())[fault]()


def faults(options: argparse.Namespace, workers: int = 4, share: float = 0.3) -> dict[str, Any]:
    """Many calls of which a share is faulty."""
    count = options.calls
    bad = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: round(share * count)]
    fault = torch.full((count,), -1.0)
    fault[bad] = torch.arange(len(bad), dtype=torch.float) % len(FAULTS)
    x = torch.stack([torch.arange(float(count)), fault], 1)
    answers: list[float | Failure] = []
    with Workers(faulty, workers, LIMIT, memory=256) as reward:
        reward(x[:workers] * torch.tensor([1.0, 0.0]) - torch.tensor([0.0, 1.0]), unconditional(workers))
        slept = sleeps(workers)
        seconds = timed(lambda: answers.extend(reward(x, unconditional(count))))
        slept += sleeps(workers)
    names = list(FAULTS)
    wrong = sum(
        answer != (number if kind < 0 else Failure(names[int(kind)]))
        for answer, (number, kind) in zip(answers, x.tolist(), strict=True)
    )
    ideal, usual = (
        schedule([LIMIT if kind == 1 else work for kind in fault.tolist()], workers)
        for work in (WORK, statistics.mean(slept))
    )
    named = collections.Counter(answer.reason for answer in answers if isinstance(answer, Failure))
    return {
        "calls": count, "faulty": len(bad), "workers": workers, "limit_seconds": LIMIT, "call_seconds": WORK,
        "not_accounted_for": count - len(answers), "wrong": wrong, "named": named, "seconds": seconds,
        "ideal_seconds": ideal, "ratio": seconds / ideal, "call_seconds_alone": statistics.mean(slept),
        "ideal_seconds_of_such_calls": usual, "ratio_of_such_calls": seconds / usual,
    }  # fmt: skip


def ray(options: argparse.Namespace, count: int = 1000, share: float = 0.1) -> list[dict[str, Any]]:
    """Two nodes of Ray in this machine, of two workers each; in every second batch one of them is killed."""
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from ray.cluster_utils import Cluster

    fault = torch.full((count,), -1.0)
    bad = torch.randperm(count, generator=torch.Generator().manual_seed(0))[: round(share * count)]
    fault[bad] = torch.arange(len(bad), dtype=torch.float) % 4  # raised, hung, and exited in two ways
    x = torch.stack([torch.arange(float(count)), fault], 1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    os.environ["RAY_ADDRESS"] = str(cluster.address)
    rows = [ray_batch(cluster, x, killed) for _ in range(3) for killed in (False, True)]
    cluster.shutdown()
    for _ in range(3):
        alone = Workers(faulty, Placement("ray://2"), LIMIT)
        first = timed(lambda alone=alone: alone(-torch.ones(1, 2), unconditional(1)))
        rows.append({"nodes": 1, "first_answers_seconds": first, "closed_seconds": timed(alone.close)})
    return rows


def ray_batch(cluster: Any, x: torch.Tensor, killed: bool) -> dict[str, Any]:
    """One batch, written into a ledger; a node is killed when a third of it stands there."""
    count, node, moment = len(x), cluster.add_node(num_cpus=2), [math.nan]
    with ThreadPoolExecutor(4) as threads:  # a process that is forked would have Ray's handlers of signals
        usual = statistics.mean(threads.map(_sleep, range(400)))
    with tempfile.TemporaryDirectory() as folder:
        ledger, begun = Ledger(Path(folder) / "ledger.db"), Path(folder) / "begun"
        cond: dict[str, Any] = {"begun": [str(begun)] * count}
        workers = Workers(noted, Placement("ray://auto"), LIMIT)
        reward = Recorded(workers, ledger, "noted", "1")
        opened = timed(lambda: workers(-torch.ones(4, 2), take(cond, torch.arange(4))))
        begun.unlink()
        killer = threading.Thread(target=kill, args=(node, ledger.path, count // 3, moment))
        if killed:
            killer.start()
        answers: list[float | Failure] = []
        seconds = timed(lambda: answers.extend(reward(x, cond)))
        if killed:
            killer.join()
        closed = timed(workers.close)
        times, paid = collections.Counter(begun.read_text().split()), len(ledger.rows())
    if not killed:
        cluster.remove_node(node)
    ideal = schedule([LIMIT if kind == 1 else usual for kind in x[:, 1].tolist()], 4, moment[0])
    wrong = sum(
        answer != (number if kind < 0 else Failure(list(FAULTS)[int(kind)]))
        for answer, (number, kind) in zip(answers, x.tolist(), strict=True)
    )
    return {
        "calls": count, "faulty": int((x[:, 1] >= 0).sum()), "nodes": 2, "workers": 4, "killed": killed,
        "not_accounted_for": count - len(answers), "wrong": wrong, "good": int((x[:, 1] < 0).sum()),
        "answers_in_the_ledger": paid, "samples_by_times_begun": collections.Counter(times.values()),
        "seconds": seconds, "killed_after_seconds": moment[0] if killed else None, "limit_seconds": LIMIT,
        "call_seconds": WORK, "call_seconds_alone": usual, "ideal_seconds_of_such_calls": ideal,
        "ratio_of_such_calls": seconds / ideal, "first_answers_seconds": opened, "closed_seconds": closed,
    }  # fmt: skip


def kill(node: Any, path: Path, paid: int, moment: list[float]) -> None:
    """Kills a node's raylet when so many answers are paid for, and notes when that was."""
    ledger, start = Ledger(path), time.perf_counter()
    while len(ledger.rows()) < paid:
        time.sleep(0.01)
    moment[0] = time.perf_counter() - start
    node.kill_raylet()


def noted(x: torch.Tensor, cond: Any) -> Any:
    """The faulty reward, which writes down what it begins with."""
    with Path(cond["begun"][0]).open("a") as file:
        file.write(f"{int(x[0, 0])}\n")
    return faulty(x, cond)


def sleeps(processes: int, times: int = 100) -> list[float]:
    """What the calls of the faulty reward take here and now in as many plain processes."""
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        return pool.map(_sleep, range(processes * times), chunksize=times)


def _sleep(_: int) -> float:
    return timed(lambda: time.sleep(WORK))


def schedule(durations: list[float], workers: int, killed: float = math.nan) -> float:
    """When the last is done if each is given to the first worker that is free.

    Args:
        killed: When half of the workers end, if they do; what they work on is begun anew at once.
    """
    free, left, last = [(0.0, worker) for worker in range(workers)], collections.deque(durations), 0.0
    while left:
        now, worker = heapq.heappop(free)
        ends = now + left.popleft()
        if worker % 2 and ends > killed:
            left.appendleft(ends - now)
            continue
        heapq.heappush(free, (ends, worker))
        last = max(last, ends)
    return last


def throughput(options: argparse.Namespace, samples: int = 400, pairs: int = 3) -> dict[str, Any]:
    """A reward of 10 ms, by one worker and by two, in turn."""

    def slow(x: torch.Tensor, cond: Any) -> torch.Tensor:
        time.sleep(0.01)
        return x[:, 0]

    x, seconds = torch.rand(samples, 1), {1: [], 2: []}
    with Workers(slow, 1, 60.0) as one, Workers(slow, 2, 60.0) as two:
        for reward in (one, two):
            reward(x[:20], unconditional(20))
        for _ in range(pairs):
            for count, reward in {1: one, 2: two}.items():
                seconds[count].append(timed(lambda reward=reward: reward(x, unconditional(samples))))
    ratios = [a / b for a, b in zip(seconds[1], seconds[2], strict=True)]
    return {
        "samples": samples, "call_seconds": 0.01, "seconds_of_one": statistics.median(seconds[1]),
        "seconds_of_two": statistics.median(seconds[2]), "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios), "ratio_max": max(ratios), "pairs": pairs,
    }  # fmt: skip


def overhead(options: argparse.Namespace, batch: int = 256, repeats: int = 15) -> dict[str, Any]:
    """A reward that costs nothing: behind its guard, in workers, and with a ledger; beside a round of PPO."""

    def free(x: torch.Tensor, cond: Any) -> torch.Tensor:
        return x.flatten(1).mean(1)

    policy = digits_policy()
    objective = Objective(free, digits_policy().requires_grad_(False), alpha=0.1)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-5)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "guard": Scoring(),
            "workers": Scoring(reward_workers=2),
            "workers_and_ledger": Scoring(reward_workers=2, ledger=Path(folder) / "ledger.db"),
        }
        guards = {name: guarded(free, "free", scoring) for name, scoring in settings.items()}
        seconds: dict[str, list[float]] = {name: [] for name in guards}
        samples = torch.rand(repeats, batch, 1, 8, 8)  # now, for rounds seed the generator anew
        for repeat, x in enumerate(samples):
            if repeat % 5 == 0:
                rounds.append(timed(lambda: list(fit(policy, objective, PPO(), [asked(batch)], optimizer))))
            for name, guard in guards.items():
                seconds[name].append(timed(lambda guard=guard, x=x: guard(x, unconditional(batch))))
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one forks
    usual = statistics.median(rounds)
    share = {name: (median - medians["guard"]) / usual for name, median in medians.items() if name != "guard"}
    return {
        "batch": batch, "workers": 2, "batch_seconds": medians, "first_batch_seconds": seconds["workers"][0],
        "round_seconds": usual, "share_of_a_round": share,
        "repeats": repeats,
    }  # fmt: skip


def overlap(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Two batches: parts of the small one are so small that a network's pass costs more a row."""
    return [overlapped(batch=256, parts=8, steps=100), overlapped(batch=2048, parts=16, steps=25)]


def overlapped(batch: int, parts: int, steps: int) -> dict[str, Any]:
    """A batch of digits whose reward, which only waits, takes as long as drawing them; in turn."""
    policy, reference = (digits_policy(steps=steps) for _ in range(2))
    drawing = Objective(lambda x, cond: x.flatten(1).mean(1), reference.requires_grad_(False), alpha=0.1)
    drawing.sample(policy, asked(batch))
    wait = timed(lambda: drawing.sample(policy, asked(batch))) / batch

    def waits(x: torch.Tensor, cond: Any) -> torch.Tensor:
        time.sleep(wait)
        return x.flatten(1).mean(1)

    seconds: dict[str, list[float]] = collections.defaultdict(list)
    with Workers(waits, 1, 60.0) as workers:
        workers(torch.rand(4, 1, 8, 8), unconditional(4))
        whole, parted = (Objective(Guard(workers, overlap=n), reference, 0.1) for n in (1, parts))
        tasks = {
            "drawing": lambda: drawing.sample(policy, asked(batch)),
            "drawing_parts": lambda: [drawing.sample(policy, asked(batch // parts)) for _ in range(parts)],
            "scoring": lambda: workers(torch.rand(batch, 1, 8, 8), unconditional(batch)),
            "one_after_the_other": lambda: whole.sample(policy, asked(batch)),
            "overlapped": lambda: parted.sample(policy, asked(batch)),
        }
        for _ in range(5):
            for name, task in tasks.items():
                seconds[name].append(timed(task))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    longer = max(medians["drawing"], medians["scoring"])
    return {
        "batch": batch, "parts": parts, "steps": steps, "workers": 1, "call_seconds": wait,
        "seconds": medians,
        "ratio_to_the_longer": medians["overlapped"] / longer, "repeats": 5,
    }  # fmt: skip


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
