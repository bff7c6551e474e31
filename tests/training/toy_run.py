"""A run small enough to be killed many times: PPO on a one-dimensional chain of five steps.

Its reward draws noise from a private generator and PPO remembers past rewards, so that a resumed run is
equal to an unbroken one only if everything was saved.
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.objective import Objective
from difftilt.processes import schedule as grid
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.shapes import Cond
from difftilt.training.load import load_totals
from difftilt.training.settings import Training
from difftilt.training.train import Round, Totals, train


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.layers(torch.cat([x, time[:, None]], 1))


def make_policy(steps: int = 5) -> GaussianPolicy:
    torch.manual_seed(0)
    levels = grid.shifted_flow(steps, sigma_min=0.05, train_steps=1)
    return GaussianPolicy(Net(), levels, (1,), prediction_type="flow_prediction")


class Job:
    """Everything that `train` wants, built anew as a new life of a program would."""

    def __init__(self, alpha: float = 0.5, batch: int = 16, reward: Any = None, **ppo: Any):
        self.noise = torch.Generator().manual_seed(1)
        self.policy, self.batch = make_policy(), batch
        reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.objective = Objective(reward or self.noisy, reference, alpha)
        self.algorithm = PPO(**({"advantage": "context", "epochs": 1, "minibatches": 2} | ppo))
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), 1e-2)
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.999)

    def noisy(self, x: Tensor, cond: Cond) -> Tensor:
        return x[:, 0] + 0.1 * torch.randn(len(x), generator=self.noise)

    def rounds(self, folder: Path, rounds: int, **options: Any) -> Iterator[Round]:
        """The generator; options are those of `Training` and those of `train`."""
        given = {name: options.pop(name) for name in fields_of(Training) & options.keys()}
        training = Training(**({"rounds": rounds, "ema_decay": 0.9} | given))
        defaults = {"scheduler": self.scheduler, "generators": [self.noise], "show": False}
        return train(
            folder,
            self.policy,
            self.objective,
            self.algorithm,
            lambda _: unconditional(self.batch),
            self.optimizer,
            training,
            **(defaults | options),
        )

    def train(self, folder: Path, rounds: int, **options: Any) -> Totals:
        """Runs all rounds that are left."""
        for _ in self.rounds(folder, rounds, **options):
            pass
        return load_totals(folder)


def fields_of(settings: type) -> set[str]:
    return {field.name for field in fields(settings)}


def live(folder: Path, rounds: int, **options: Any) -> None:
    """One life of a program, in a process of its own."""
    torch.set_num_threads(1)
    Job().train(folder, rounds, **options)


def rounds_saved(folder: Path) -> int:
    names = [path.name for path in (folder / "checkpoints").glob("round-*")]
    return max((int(name.removeprefix("round-")) for name in names), default=0)


def remains(folder: Path) -> dict[str, str]:
    """The SHA-256 of everything that a run leaves behind, but for the time it took."""
    last = folder / "checkpoints" / f"round-{rounds_saved(folder):06d}"
    files = {p.name: p.read_bytes() for p in last.iterdir()}
    files.pop("MANIFEST.json", None)
    training = json.loads(files["training.json"])
    training.pop("seconds")
    files["training.json"] = json.dumps(training).encode()
    files["metrics.jsonl"] = (folder / "metrics.jsonl").read_bytes()
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
