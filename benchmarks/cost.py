"""How time and memory grow with a round's work: batch, steps T, the network's width, the length of a state.

gaussian   a chain of `length` real numbers, and an MLP of two hidden layers
masked     masked sequences of `length` tokens, and a transformer of one layer

One of the four is doubled at a time, from `FIRST`. Every point is measured in processes of its own: CPU
seconds of a round, in turn with those of its bare network passes, medians; and the peak of live tensors,
weights apart, in one more round. The limit of the memory is the largest of these passes beside the states of
the chains, if a method keeps all of them. Where docs/algorithms.md has a formula of an algorithm's passes,
they are checked against it. Settings are defaults, but for the single minibatch of `trajectory-balance-1`.

    python benchmarks/cost.py [--only CHAIN ...] [--algorithms NAME ...] [--repeats N] [--out FILE.json]

Rows of other runs in FILE.json stay. `growth.py` fits exponents and draws.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from memory import LiveBytes
from overhead import Call, record, replay

from difftilt import (
    GRPO,
    NFT,
    PPO,
    SMC,
    SVDD,
    AdjointMatching,
    Algorithm,
    Backprop,
    GaussianPolicy,
    LocalSearch,
    MaskedPolicy,
    Objective,
    Policy,
    PosteriorMean,
    RewardWeighted,
    TrajectoryBalance,
    fit,
    unconditional,
)
from difftilt.experiment.record import write_json
from difftilt.networks.sequence import Transformer
from difftilt.processes.schedule import linear
from difftilt.samplers.base import Sampler
from difftilt.training.fit import denoisers
from difftilt.training.settings import Training

Sizes = dict[str, int]
Row = dict[str, Any]
FIRST: dict[str, Sizes] = {
    "gaussian": {"batch": 64, "steps": 16, "width": 128, "length": 32},
    "masked": {"batch": 16, "steps": 2, "width": 32, "length": 16},
}
DOUBLED = 3  # times, at most
ALGORITHMS: dict[str, Callable[[], Algorithm]] = {
    "ppo": PPO,
    "grpo": GRPO,
    "backprop": Backprop,
    "adjoint-matching": AdjointMatching,
    "trajectory-balance": TrajectoryBalance,
    "trajectory-balance-1": lambda: TrajectoryBalance(minibatches=1),
    "reward-weighted": RewardWeighted,
    "nft": NFT,
    "local-search": LocalSearch,
}
SAMPLERS: dict[str, Callable[[], Sampler]] = {"smc": SMC, "svdd": SVDD}
PASSES: dict[str, Callable[[int], tuple[float, float]]] = {  # per sample and step of T
    "ppo": lambda steps: (4, 2),
    "grpo": lambda steps: (4, 2),
    "backprop": lambda steps: (2, 2 - 1 / steps),
    "adjoint-matching": lambda steps: (3, 2),
    "trajectory-balance": lambda steps: (3, 1),
    "trajectory-balance-1": lambda steps: (2, 1),
    "reward-weighted": lambda steps: (3, 1),
    "nft": lambda steps: (2 + 2 * 8 / steps, 8 / steps),
}
REAL_ONLY = {"adjoint-matching", "nft"}  # they regress on real numbers
CATEGORIES = 4
ENOUGH, MOST = 0.2, 10  # seconds and pairs of a point that is quick


class MLP(nn.Module):
    """From `length` numbers and the time to `length` numbers."""

    def __init__(self, length: int, width: int):
        super().__init__()
        inner = [nn.Linear(length + 1, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*inner, nn.Linear(width, length))

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Any) -> torch.Tensor:
        return self.layers(torch.cat([x, time[:, None] / 1000], 1))


def chain(kind: str, sizes: Sizes) -> Policy:
    length, width = sizes["length"], sizes["width"]
    if kind == "gaussian":
        return GaussianPolicy(MLP(length, width), linear(sizes["steps"]), (length,))
    network = Transformer(CATEGORIES, length, width, depth=1, heads=4)
    return MaskedPolicy(network, CATEGORIES, length, steps=sizes["steps"])


def reward(sample: torch.Tensor, cond: Any) -> torch.Tensor:
    """The mean of real numbers, or how many tokens are the first one, also of one-hot vectors."""
    if sample.ndim == 2:
        return sample.mean(1) if sample.is_floating_point() else (sample == 0).float().sum(1)
    return sample[..., 0].sum(1)


class Problem:
    """A policy, and one round after another of a method."""

    def __init__(self, kind: str, name: str, sizes: Sizes):
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.policy = chain(kind, sizes)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.objective = Objective(reward, self.reference, alpha=1.0)
        self.batch, self.number = sizes["batch"], 0
        self.networks: list[nn.Module] = [self.reference.network]
        self.round = (
            self._steering(SAMPLERS[name]()) if name in SAMPLERS else self._tuning(ALGORITHMS[name]())
        )

    def _steering(self, sampler: Sampler) -> Callable[[], object]:
        value, cond = PosteriorMean(self.objective), unconditional(self.batch // sampler.population)
        return lambda: sampler.draw(self.objective, value, cond)

    def _tuning(self, algorithm: Algorithm) -> Callable[[], object]:
        cond = unconditional(self.batch)
        algorithm.setup(self.policy, cond)
        self.networks = denoisers(self.policy, self.reference, algorithm)
        own = [p for p in (*self.policy.parameters(), *algorithm.parameters()) if p.requires_grad]
        optimizer, accelerator = torch.optim.Adam(own, 1e-5), Accelerator(cpu=True)

        def tune() -> None:
            rows = fit(
                self.policy, self.objective, algorithm, [cond], optimizer, Training(), accelerator,
                start=self.number,
            )  # fmt: skip
            list(rows)
            self.number += 1

        return tune

    def bare(self, calls: list[Call]) -> None:
        replay(calls)
        for parameter in self.policy.parameters():
            parameter.grad = None


def timed(kind: str, name: str, sizes: Sizes, repeats: int) -> Row:
    """CPU seconds of rounds and of their bare passes, in turn; the first of each loads what it needs."""
    problem = Problem(kind, name, sizes)
    pairs: list[tuple[float, float]] = []
    calls: list[Call] = []
    while len(pairs) <= repeats or (sum(map(sum, pairs)) < ENOUGH and len(pairs) < MOST):
        took, calls = spent(lambda: record(problem.networks, problem.round))
        pairs.append((took, spent(partial(problem.bare, calls))[0]))
    rounds, passes = zip(*pairs[1:], strict=True)
    counts = [(len(inputs[0]), gradient) for _, inputs, gradient in calls]
    rows = [sum(n for n, _ in counts), sum(n for n, gradient in counts if gradient)]
    per = [count / sizes["batch"] / sizes["steps"] for count in rows]
    if name in PASSES and not all(map(math.isclose, per, PASSES[name](sizes["steps"]))):
        raise ValueError(f"{name} made {per} passes where its formula says {PASSES[name](sizes['steps'])}")
    return {
        "cpu_seconds": statistics.median(rounds),
        "passes_cpu_seconds": statistics.median(passes),
        "all_cpu_seconds": rounds,
        "all_passes_cpu_seconds": passes,
        "forward": per[0],
        "backward": per[1],
    }


def held(kind: str, name: str, sizes: Sizes) -> Row:
    """Peak bytes of the third round, and of the states and the largest pass of the second."""
    problem = Problem(kind, name, sizes)
    problem.round()
    calls = record(problem.networks, problem.round)
    kinds = {
        (network, len(inputs[0]), gradient): (network, inputs, gradient)
        for network, inputs, gradient in calls
    }
    largest = 0
    for call in kinds.values():
        with LiveBytes() as count:
            problem.bare([call])
        largest = max(largest, count.peak)
    with LiveBytes() as count:
        problem.round()
    x = problem.policy.initial(unconditional(1)).sample()
    chains = 0 if name in SAMPLERS or name == "local-search" else sizes["batch"]  # whole ones, that are kept
    states = (sizes["steps"] + 1) * chains * x.nbytes
    return {"peak_bytes": count.peak, "passes_peak_bytes": states + largest}


def spent(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor, which others' work does not lengthen as much; and what the work returns."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def apart(work: Callable[..., Row], *asked: Any) -> Row:
    """What some work finds in a process of its own, with everything imported."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run(out: Connection) -> None:
        out.send(work(*asked))

    process = context.Process(target=run, args=(there,))
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} of {asked} failed; its error stands above") from None
    finally:
        process.join()


def points(kind: str) -> Iterator[tuple[list[str], Sizes]]:
    """The sizes that are measured, each once, and in whose sweep they are."""
    first = FIRST[kind]
    yield list(first), first
    for name in first:
        for k in range(DOUBLED):
            yield [name], first | {name: first[name] * 2 ** (k + 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    methods = [*ALGORITHMS, *SAMPLERS]
    parser.add_argument("--only", nargs="+", choices=FIRST, default=list(FIRST), metavar="CHAIN")
    parser.add_argument("--algorithms", nargs="+", choices=methods, default=methods, metavar="NAME")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    rows = json.loads(options.out.read_text())["rows"] if options.out and options.out.exists() else []
    held("gaussian", "ppo", FIRST["gaussian"])  # loads what every process needs
    for kind in options.only:
        for name in options.algorithms:
            if kind == "masked" and name in REAL_ONLY:
                continue
            rows = [row for row in rows if (row["chain"], row["algorithm"]) != (kind, name)]
            for sweeps, sizes in points(kind):
                found = apart(timed, kind, name, sizes, options.repeats) | apart(held, kind, name, sizes)
                rows.append({"chain": kind, "algorithm": name, "sweeps": sweeps, **sizes, **found})
                print(json.dumps({k: v for k, v in rows[-1].items() if "all_" not in k}), flush=True)
            if options.out:
                write_json(options.out, machine | {"repeats": options.repeats, "rows": rows})


if __name__ == "__main__":
    main()
