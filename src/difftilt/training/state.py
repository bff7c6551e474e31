"""Everything that one round hands to the next."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy
from difftilt.shapes import Stateful
from difftilt.training import checkpoint
from difftilt.training.checkpoint import Snapshot
from difftilt.training.ema import EMA
from difftilt.training.kl_controller import KLController
from difftilt.training.manifest import CheckpointError
from difftilt.training.own import own_of
from difftilt.training.settings import Training
from difftilt.training.sharding import placed
from difftilt.training.tree import pack

Scheduler = torch.optim.lr_scheduler.LRScheduler


class Saved(TypedDict):
    """The plain part of `training` in a checkpoint."""

    rounds: int
    steps: int
    seconds: float
    log_bytes: int
    log_sha256: str
    seed: int
    processes: int
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    kl_controller: dict[str, Any] | None
    body: str | None


@dataclass
class State:
    """The state of a run at the end of a round.

    Args:
        generators: Private generators of the reward, the conditions or the networks.
        target_kl: KL in nats that the objective's alpha is moved to reach, if given.
        body: What the caller of `train` changes between rounds.
        run: What tells this run from others, as JSON holds it; every checkpoint says it.
        rounds: How many are done.
        steps: Gradient steps taken.
        seconds: Spent, over all lives of the run.
        log_bytes: Length of `metrics.jsonl`.
        log_sha256: Its hash; empty if it is unknown.
    """

    policy: Policy
    objective: Objective
    algorithm: Algorithm
    optimizer: torch.optim.Optimizer
    training: Training
    accelerator: Accelerator
    scheduler: Scheduler | None = None
    generators: Sequence[torch.Generator] = ()
    target_kl: float | None = None
    body: Stateful | None = None
    run: Mapping[str, Any] = field(default_factory=dict)
    counter: NetworkCalls = field(default_factory=NetworkCalls)
    rounds: int = 0
    steps: int = 0
    seconds: float = 0.0
    log_bytes: int = 0
    log_sha256: str = ""
    ema: EMA | None = field(init=False)
    kl_controller: KLController | None = field(init=False)

    def __post_init__(self):
        decay, target = self.training.ema_decay, self.target_kl
        self.ema = EMA(self.policy, decay) if decay else None
        self.kl_controller = None if target is None else KLController(self.objective, target)

    def stepped(self) -> None:
        """Moves what follows every gradient step."""
        self.steps += 1
        if self.ema is not None:
            self.ema.update()

    def finished_round(self) -> None:
        """Moves what follows every round."""
        self.rounds += 1
        if self.scheduler is not None:
            self.scheduler.step()

    def snapshot(self) -> Snapshot:
        """A copy, which training does not change."""
        training = {
            "rounds": self.rounds,
            "steps": self.steps,
            "seconds": self.seconds,
            "log_bytes": self.log_bytes,
            "log_sha256": self.log_sha256,
            "seed": self.training.seed,
            "processes": self.accelerator.num_processes,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "kl_controller": None if self.kl_controller is None else self.kl_controller.state_dict(),
            "body": None if self.body is None else "one",
        }
        shared = {"policy": pack(weights(self.policy)), "training": pack(training)}
        if self.ema is not None:
            shared["ema"] = pack(self.ema.state_dict())
        own = {
            "algorithm": self.algorithm.state_dict(),  # it may remember what only this process has seen
            "reward": self.objective.reward.state_dict(),
            "forward": self.counter.forward,
            "backward": self.counter.backward,
            "random": _random_state(),
            "generators": [generator.get_state() for generator in self.generators],
            "body": None if self.body is None else self.body.state_dict(),
        }
        if self.objective.diversity is not None:
            own["diversity"] = self.objective.diversity.state_dict()
        return Snapshot(self.rounds, shared, pack(own), self.run)

    def restore(self, path: Path) -> None:
        """Takes over what a checkpoint holds.

        Raises:
            CheckpointError: If it is whole, but holds the state of something else.
        """
        training = checkpoint.read(path, "training", Saved)
        if training is None:
            raise CheckpointError(f"{path} holds no training.json; bring the checkpoint back from a copy")
        self._check(path, training)
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        own = own_of(path, process, processes, training["processes"])
        load_weights(self.policy, checkpoint.read(path, "policy") or {})  # it may have nothing to train
        try:
            self._restore(path, training, own)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{path} does not hold the state of this run ({type(error).__name__}:"
                f" {' '.join(str(error).split())[:200]}); resume it as it was started"
            ) from error

    def _restore(self, path: Path, training: dict[str, Any], own: dict[str, Any]) -> None:
        asked = [group.get("initial_lr") for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(self._placed(training["optimizer"]))
        if self.scheduler is not None:
            self.scheduler.load_state_dict(training["scheduler"])
            self._scale_rates(self.scheduler, asked)
        if self.ema is not None:
            self.ema.load_state_dict(checkpoint.read(path, "ema"))
        if self.kl_controller is not None:
            self.kl_controller.load_state_dict(training["kl_controller"])
        self.rounds, self.steps = training["rounds"], training["steps"]
        self.seconds = training["seconds"]
        self.log_bytes, self.log_sha256 = training["log_bytes"], training["log_sha256"]
        self.algorithm.load_state_dict(own["algorithm"])
        self.objective.reward.load_state_dict(own["reward"])
        if self.objective.diversity is not None:
            self.objective.diversity.load_state_dict(own["diversity"])
        self.counter.forward, self.counter.backward = own["forward"], own["backward"]
        _set_random_state(own["random"])
        for generator, state in zip(self.generators, own["generators"], strict=True):
            generator.set_state(state)
        if self.body is not None:
            self.body.load_state_dict(own["body"])

    def _placed(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state with the moments where their parameters are."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

        def moment(x: Any, p: Tensor) -> Any:
            return placed(x, p) if isinstance(x, Tensor) and x.shape == p.shape else x

        moments = {
            number: {name: moment(x, parameters[number]) for name, x in state.items()}
            for number, state in optimizer["state"].items()
        }
        return optimizer | {"state": moments}

    def _scale_rates(self, scheduler: Scheduler, asked: Sequence[float | None]) -> None:
        """Where another learning rate is asked for than the checkpoint has, later ones are in proportion."""
        for i, (group, rate) in enumerate(zip(self.optimizer.param_groups, asked, strict=True)):
            if rate is not None and rate != group["initial_lr"]:
                group["lr"] *= rate / group["initial_lr"]
                group["initial_lr"] = scheduler.base_lrs[i] = rate

    def _check(self, path: Path, training: dict[str, Any]) -> None:
        ema = None if checkpoint.read(path, "ema") is None else "one"
        present = {
            "seed": (training["seed"], self.training.seed),
            "target KL": (
                training["kl_controller"] and training["kl_controller"].get("target_kl"),
                self.target_kl,
            ),
            "moving average": (ema, None if self.ema is None else "one"),
            "scheduler": (training["scheduler"] and "one", None if self.scheduler is None else "one"),
            "state of the loop's body": (training["body"], None if self.body is None else "one"),
        }
        for name, (saved, now) in present.items():
            if saved != now:
                raise ValueError(
                    f"the run in {path} has {name} {saved}, but got {now}; resume it as it was started,"
                    " or choose another folder"
                )


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters, and the buffers, by name: what a frozen copy of the model lacks."""
    named = model.named_parameters(remove_duplicate=False)
    frozen = {name for name, p in named if not p.requires_grad}
    state = model.state_dict()
    return {name: x for name, x in state.items() if isinstance(x, Tensor) and name not in frozen}


def load_weights(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Puts saved weights into a model that trains the same parameters."""
    present = weights(model)
    wrong = sorted(saved.keys() ^ present.keys())
    wrong += [name for name in saved.keys() & present.keys() if saved[name].shape != present[name].shape]
    if wrong:
        raise ValueError(
            f"the saved weights and the model differ in '{wrong[0]}' and {len(wrong) - 1} other tensors;"
            " build the model as it was when the run was started"
        )
    model.load_state_dict({name: placed(x, present[name]) for name, x in saved.items()}, strict=False)


def _random_state() -> dict[str, Any]:
    name, keys, *position = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *position],
        "python": [version, torch.tensor(words), gauss],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *position = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *position))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
