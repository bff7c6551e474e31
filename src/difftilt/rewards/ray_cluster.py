"""A cluster of Ray, as this process uses it: started or joined, and left when nobody needs it any more."""

import importlib
import itertools
import logging
import math
import os
import re
import secrets
import signal
import socket
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from difftilt.answers import RewardError, described
from difftilt.data.handlers import handlers_kept
from difftilt.rewards.ray_node import Node
from difftilt.rewards.worker_task import LOSSES

AUTO = "ray://auto"
TEXT = re.compile(r"ray://(auto|[1-9]\d*)")
RESOURCE = re.compile(r"(\w[\w.:-]*)=(\d+(?:\.\d+)?)")
NAMED = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}  # as an option of an actor
ANSWER = 10.0  # seconds within which the address of a cluster must answer
CALLS = 100  # that an actor answers at once: one for each reward waits for what happens


@dataclass(frozen=True)
class Placement:
    """Workers that Ray places.

    Args:
        text: ray://auto joins the cluster that runs here or that RAY_ADDRESS names, and takes what it has;
            ray://N starts a cluster of its own in this machine, for N workers.
        resources: What each worker needs, such as CPU=1; others are GPU, memory (bytes) and one's own names.
        prefix: What the names of the settings begin with that ask for these workers.
        alone: Whether each worker is given an actor of its own; those that need GPUs always are.

    Raises:
        ValueError: If these cannot be read.
    """

    text: str
    resources: tuple[str, ...] = ("CPU=1",)
    prefix: str = "reward_"
    alone: bool = False

    def __post_init__(self):
        if not TEXT.fullmatch(self.text):
            raise ValueError(
                f"{self.prefix}workers must be a number of processes, ray://N with N at least 1, or {AUTO},"
                f" but got {self.text!r}"
            )
        for resource in self.resources:
            found = RESOURCE.fullmatch(resource)
            if found is None or not float(found[2]):
                raise ValueError(
                    f"{self.prefix}resources must be NAME=AMOUNT with an amount above 0, such as CPU=1 or"
                    f" GPU=0.25, but got {resource!r}"
                )

    def __str__(self) -> str:
        return self.text

    def option(self, name: str) -> str:
        """How these workers' settings are called on the command line."""
        return _option(self.prefix, name)

    @property
    def count(self) -> int | None:
        """Workers; None for as many as there is room for."""
        return None if self.text == AUTO else int(self.text.removeprefix("ray://"))

    def needs(self, workers: int = 1) -> dict[str, float]:
        """What so many of them need."""
        pairs = (resource.split("=") for resource in self.resources)
        return {name: float(amount) * workers for name, amount in pairs}


def placed(
    workers: int | str, resources: Sequence[str], prefix: str = "reward_", *, alone: bool = False
) -> int | Placement:
    """Workers as settings ask for them: a number of processes, or a text that begins with ray://.

    Raises:
        ValueError: If they cannot be read, or do not go together.
    """
    if isinstance(workers, str):
        return Placement(workers, tuple(resources) or Placement.resources, prefix, alone)
    if resources:
        raise ValueError(
            f"got {prefix}resources {' '.join(resources)}, but {workers} {prefix}workers, which are processes"
            f" of this machine; Ray alone places workers by resources: give {_option(prefix, 'workers')}"
            f" {AUTO}, or leave them out"
        )
    return workers


def _option(prefix: str, name: str) -> str:
    return f"--{prefix}{name}".replace("_", "-")


class Cluster:
    """Ray, and one actor on every node that has room for workers, or one for each of them.

    A process that several (`WORLD_SIZE`) ask from takes its share of the workers.

    Attributes:
        ray: The package.
        actors: With how many workers each has room for.
        numbers: Of pools.

    Raises:
        RewardError: If Ray is not installed, or there is no cluster, or no room.
    """

    def __init__(self, placement: Placement):
        self.ray, self.owner, self.numbers = _package(placement), os.getpid(), itertools.count()
        mine = not self.ray.is_initialized()
        if mine:
            with handlers_kept((signal.SIGINT, signal.SIGTERM)):  # Ray takes them over
                _connect(self.ray, placement)
        self.actors: list[tuple[Any, int]] = []
        self.leave = weakref.finalize(self, _leave, self.ray, self.owner, self.actors, mine)
        room = self._room(placement)
        alone = placement.alone or "GPU" in placement.needs()  # of which Ray tells each actor its own
        for node, workers in room.items():
            for count in [1] * workers if alone else [workers]:
                self.actors.append((self._actor(node, placement.needs(count), count), count))

    def _room(self, placement: Placement) -> Counter[str]:
        """How many workers of this process go to each node."""
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        needs = placement.needs()
        room = {
            node["NodeID"]: min(
                int(node["Resources"].get(name, 0) / amount) for name, amount in needs.items()
            )
            for node in nodes
        }
        rank, several = (int(os.environ.get(*pair)) for pair in (("RANK", "0"), ("WORLD_SIZE", "1")))
        all_ = [node for node, workers in room.items() for _ in range(workers)]
        mine = all_[: placement.count] if placement.count else all_[rank::several]
        if not mine:
            held = [{name: node["Resources"].get(name, 0) for name in needs} for node in nodes]
            raise RewardError(
                f"{placement} has no room for a worker of process {rank} of {several}, which needs"
                f" {' '.join(placement.resources)}: its nodes have {held}; ask for less with"
                f" {placement.option('resources')}"
            )
        return Counter(mine)

    def _actor(self, node: str, needs: dict[str, float], count: int) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": CALLS, "max_restarts": LOSSES}
        options |= {NAMED[name]: needs.pop(name) for name in NAMED if name in needs}
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        return self.ray.remote(Node).options(resources=needs, **options).remote(count)


_clusters: weakref.WeakValueDictionary[Placement, Cluster] = weakref.WeakValueDictionary()


def cluster(placement: Placement) -> Cluster:
    """The cluster of this process; all its rewards share the workers."""
    found = _clusters.get(placement)
    if found is None or found.owner != os.getpid() or not found.leave.alive:
        found = _clusters[placement] = Cluster(placement)
    return found


def _package(placement: Placement) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if placement.count:  # Ray's own switch for the loopback alone, which it reads when it is loaded
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this process and those that it starts
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise RewardError(
            f"{placement} needs Ray, which is not installed; install it with pip install 'difftilt[ray]'"
        ) from error


def _connect(ray: Any, placement: Placement) -> None:
    """Starts the cluster that was asked for, or joins it."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    host, _, port = os.environ.get("RAY_ADDRESS", "").rpartition(":")
    if placement.count:
        room = {name: math.ceil(amount) for name, amount in placement.needs(placement.count).items()}
        options |= {"address": "local", "include_dashboard": False, "_memory": room.pop("memory", None)}
        options |= {"num_cpus": room.pop("CPU", 0), "num_gpus": room.pop("GPU", None), "resources": room}
    else:
        options["address"] = "auto"
    try:
        if host and not placement.count:  # Ray itself goes on trying for minutes
            socket.create_connection((host, int(port)), ANSWER).close()
        ray.init(**options)
    except Exception as error:
        raise RewardError(
            f"{placement} cannot {'start' if placement.count else 'join'} a cluster of Ray:"
            f" {described(error)}; see that one runs (ray start --head), or give ray://N for one of this"
            " run's own, or a number of processes"
        ) from error


def _leave(ray: Any, owner: int, actors: list[tuple[Any, int]], mine: bool) -> None:
    """Gives the workers' room back; a forked process only forgets it."""
    if os.getpid() != owner or not ray.is_initialized():
        return
    for actor, _ in actors:
        ray.kill(actor)
    if mine:
        ray.shutdown()
