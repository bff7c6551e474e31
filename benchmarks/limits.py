"""Methods with a bias of their own, and the limit in which it vanishes, on linear-Gaussian chains.

truncation   backprop through the last K of 20 steps, and the `lqg16` task of exact.py
reversal     methods that noise samples again, on chains of T steps: they are right as far as the chain
             reverses the noising process, which it does the better the more steps it has
blindness    DPOK, whose decisions do not see the KL that they cause later, on gmm-x of exact.py: the larger
             alpha, the smaller all KLs, and the less there is to see

    python benchmarks/limits.py [--only NAME ...] [--seeds N] [--out FILE.json]
"""

import argparse
import dataclasses
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact
import torch

from difftilt import Algorithm, Backprop, GaussianPolicy, RewardWeighted
from difftilt.exact.toy import AffineResidual, GaussianDenoiser
from difftilt.experiment.record import write_json
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import linear

LAST, STEPS, ALPHAS = (1, 5, 10, 20), (5, 10, 20, 40, 80), (1, 2, 4)
BIASES = ["truncation", "reversal", "blindness"]


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    rows: list[dict[str, Any]] = []
    for name, algorithm, task, entry, limit in cases():
        if name not in options.only:
            continue
        exact.TASKS[task.name], exact.ALGORITHMS[algorithm] = task.task, entry
        for seed in range(options.seeds):
            row = exact.run(task.name, algorithm, seed) | {"bias": name, **limit}
            rows.append(row)
            print(name, algorithm, limit, f"seed {seed} excess {row['excess_nats']:.4f} nats", flush=True)
            if options.out:
                write_json(options.out, machine | {"rows": rows})


@dataclasses.dataclass(frozen=True)
class Named:
    """A task and what its rows call it."""

    name: str
    task: exact.Task


def cases() -> list[tuple[str, str, Named, exact.Entry, dict[str, int]]]:
    """The bias, the algorithm, the task, how it is trained, and where in the limit it stands."""
    found = []
    for k in LAST:
        entry = dataclasses.replace(exact.ALGORITHMS["backprop"], algorithm=truncated(k))
        found.append(("truncation", "backprop", Named("lqg16", exact.TASKS["lqg16"]), entry, {"last": k}))
    makers: dict[str, tuple[Callable[[], Algorithm], int]] = {
        "reward-weighted-denoising": (lambda: RewardWeighted(form="denoising", epochs=2), 100),
        "nft": (exact.ALGORITHMS["nft"].algorithm, 400),
    }
    for steps in STEPS:
        task = exact.Task(exact.data()[2], 1.0, chain(steps), exact.measure_affine)
        for name, (algorithm, rounds) in makers.items():
            entry = exact.Entry(algorithm, batch=1024, rounds=rounds, learning_rate=5e-3)
            found.append(("reversal", name, Named(f"lqg16-{steps}", task), entry, {"steps": steps}))
    for alpha in ALPHAS:
        task = dataclasses.replace(exact.TASKS["gmm-x"], alpha=float(alpha))
        named = Named(f"gmm-x-{alpha}", task)
        found.append(("blindness", "dpok", named, exact.ALGORITHMS["dpok"], {"alpha": alpha}))
    return found


def truncated(k: int) -> Callable[[], Backprop]:
    return lambda: Backprop(through="last", last=k, minibatches=1, recompute=False)


def chain(steps: int) -> Callable[[bool], GaussianPolicy]:
    """The data of lqg16 on a grid of that many steps."""

    def make(tuned: bool) -> GaussianPolicy:
        levels = dataclasses.replace(linear(steps), time=torch.arange(steps + 1))
        network: torch.nn.Module = GaussianDenoiser(levels, *exact.data()[:2])
        if tuned:
            network = AffineResidual(network, levels.sigma**2, exact.DIMENSION)
        settings: Any = {"prediction_type": "sample", "noise": FixedLarge()}
        return GaussianPolicy(network, levels, (exact.DIMENSION,), **settings)

    return make


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=BIASES, default=BIASES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
