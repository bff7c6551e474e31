"""Peak bytes of one gradient step, against the number of steps T of the chain.

    python benchmarks/memory.py

Counts the storage of every live tensor, not the process's memory, so the same code gives the same bytes.
The network has few weights and large activations: a graph that is kept for each step shows.
"""

import json
import weakref
from pathlib import Path

import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import unconditional
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import linear

RESULTS = Path(__file__).parent / "results" / "memory.json"
BATCH, DIMENSION, WIDTH = 16, 8, 16384
STEPS = (10, 100)
ALGORITHMS = {
    "backprop": Backprop,
    "path-consistency": PathConsistency,
    "trajectory-balance": TrajectoryBalance,
}


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations made and that are still alive."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key, size):
        self.known.discard(key)
        self.live -= size


class Wide(nn.Module):
    """From a few numbers to many and back."""

    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(DIMENSION, width), nn.SiLU(), nn.Linear(width, DIMENSION))

    def forward(self, x, time, cond):
        return self.layers(x)


def chain(steps, width):
    return GaussianPolicy(Wide(width), linear(steps), (DIMENSION,))


def peak(name, steps, recompute, width=WIDTH):
    """Bytes at the highest point of one gradient step, and those of the chain's states."""
    torch.manual_seed(0)
    policy, cond = chain(steps, width), unconditional(BATCH)
    objective = Objective(lambda x, c: x.sum(1), chain(steps, width).requires_grad_(False), 1.0)
    algorithm = ALGORITHMS[name](minibatches=1, recompute=recompute)
    algorithm.setup(policy, cond)
    with LiveBytes() as count:
        for loss in algorithm.losses(policy, objective, cond):
            loss.value.backward()
    return {"peak_bytes": count.peak, "state_bytes": 4 * (steps + 1) * BATCH * DIMENSION}


def main():
    torch.set_num_threads(1)
    rows = []
    for name in ALGORITHMS:
        for recompute in (True, False):
            for steps in STEPS:
                rows.append({"algorithm": name, "recompute": recompute, "steps": steps})
                rows[-1] |= peak(name, steps, recompute)
                print(json.dumps(rows[-1]))
    setup = {"batch": BATCH, "dimension": DIMENSION, "width": WIDTH, "torch": torch.__version__}
    RESULTS.write_text(json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
