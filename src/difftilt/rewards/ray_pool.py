"""Workers on the nodes of a cluster of Ray, as the process that asks sees them: as one pool.

Every node keeps its own pool, so that limits, deaths and replacements are dealt with where they happen. Here
tasks are dealt to the nodes, no more at a time than keep their workers busy, and those of a node that is lost
are dealt to others.
"""

import contextlib
import importlib
import importlib.machinery
import os
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from difftilt.answers import RewardError, described
from difftilt.rewards.ray_cluster import Cluster, Placement, cluster
from difftilt.rewards.worker_pool import PoolLost
from difftilt.rewards.worker_task import LOSSES, QUEUED, Limits, Message
from difftilt.shapes import Cond, Sample

START = 120.0  # seconds within which the first node must be ready
LOOK = 0.2  # seconds between looks at whether anybody still asks


@dataclass(eq=False)
class Place:
    """A node, and what its pool was given.

    Attributes:
        tasks: As they were sent, until they are over.
        begun: Those of them that have begun.
        openings: How often its pool was started.
        ready: Whether it is.
    """

    actor: Any
    count: int
    tasks: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    begun: set[int] = field(default_factory=set)
    openings: int = 0
    ready: bool = False


@dataclass(frozen=True)
class Hosted:
    """What the processes are that Ray's actors start.

    Args:
        what: What they know, in messages.
        program: The module that they run.
        pack: Makes of what they know something that can be sent, once there is a cluster.
        queued: Tasks per worker that are given out: those beyond one wait where the next one is done.
    """

    what: str
    program: str
    pack: Callable[[], Any]
    queued: int = QUEUED


class Dealer:
    """Deals tasks to nodes, and hears what they say, in a thread of its own.

    Attributes:
        said: Messages, or the error that ends the pool.
        lost: Whether no node is left.
    """

    def __init__(self, joined: Cluster, hosted: Hosted, content: Any):
        self.ray, self.number, self._hosted = joined.ray, next(joined.numbers), hosted
        self.said: queue.SimpleQueue[list[Message] | Exception] = queue.SimpleQueue()
        self.lost = False
        self._closed = threading.Event()
        self._content, self._lock = content, threading.Lock()
        self._waiting: deque[tuple[int, bytes, float]] = deque()
        self._places = [Place(actor, count) for actor, count in joined.actors]
        self._asked: dict[Any, Place] = {}  # what is to come of each node
        for place in self._places:
            self._open(place)

    @property
    def ready(self) -> int:
        """Workers of the nodes that can be given tasks."""
        return sum(place.count for place in self._places if place.ready)

    def send(self, task: int, content: bytes, limit: float) -> None:
        with self._lock:
            self._waiting.append((task, content, limit))
            self._deal()

    def listen(self) -> None:
        """Hears the nodes until the pool is closed, or lost."""
        try:
            while self._asked and not self._closed.is_set():
                self._hear()
            self.lost = not self._asked
            self.said.put(PoolLost("was lost with the last node"))
        except RewardError as error:
            self.said.put(error)
        except (Exception, SystemExit) as error:  # of Ray itself, which exits where it has been left
            self.lost = True
            self.said.put(PoolLost(f"was lost by Ray ({described(error)})"))

    def close(self) -> None:
        """Ends the pools of all nodes."""
        self._closed.set()
        if self.ray.is_initialized():
            for place in self._places:
                place.actor.close.remote(self.number)

    def _hear(self) -> None:
        for told in self.ray.wait(list(self._asked), timeout=LOOK)[0]:
            place = self._asked.pop(told)
            try:
                said = self.ray.get(told)
            except self.ray.exceptions.RayError:
                self._lost(place)
                continue
            if not place.ready and said is not None:
                raise RewardError(
                    f"{self._hosted.what} cannot be made on a node of Ray: {said}; install there what it"
                    " needs"
                )
            with self._lock:
                self._note(place, said or [])
                place.ready = True
                self._deal()
            self._asked[place.actor.receive.remote(self.number)] = place

    def _note(self, place: Place, messages: list[Message]) -> None:
        for task, what, *_ in messages:
            if what == "began":
                place.begun.add(task)
            elif what == "over":
                place.begun.discard(task)
                place.tasks.pop(task, None)
        self.said.put(messages)

    def _deal(self) -> None:
        """Gives each task to the node that has the fewest for its workers."""
        while self._waiting:
            free = [p for p in self._places if p.ready and len(p.tasks) < self._hosted.queued * p.count]
            if not free:
                return
            place = min(free, key=lambda p: len(p.tasks) / p.count)
            task, content, limit = self._waiting.popleft()
            place.tasks[task] = (content, limit)
            place.actor.send.remote(self.number, task, content, limit)

    def _open(self, place: Place) -> None:
        place.openings += 1
        opened = place.actor.open.remote(self.number, self._hosted.program, self._content, sys.path)
        self._asked[opened] = place

    def _lost(self, place: Place) -> None:
        """Deals with a pool, or a node, that is gone: what it had not begun with goes to others as it is."""
        with self._lock:
            self.said.put([[task, "lost"] for task in place.begun])
            left = [(task, *rest) for task, rest in place.tasks.items() if task not in place.begun]
            self._waiting.extendleft(reversed(left))
            place.tasks, place.begun, place.ready = {}, set(), False
            if place.openings < LOSSES:
                self._open(place)
            else:
                self._places.remove(place)
            self._deal()


class RayPool:
    """Workers, wherever Ray has placed them.

    Attributes:
        owner: The process that made the pool.

    Raises:
        RewardError: If Ray is not installed, there is no cluster, or no room in it, or what they are to know
            cannot be sent.
    """

    def __init__(self, hosted: Hosted, placement: Placement):
        self.owner, joined = os.getpid(), cluster(placement)
        self._dealer = Dealer(joined, hosted, joined.ray.put(hosted.pack()))
        thread = threading.Thread(target=self._dealer.listen, daemon=True)
        self.close = weakref.finalize(self, _end, self.owner, self._dealer, thread, joined)
        thread.start()
        try:
            self._wait(placement)
        except BaseException:
            self.close()
            raise

    def _wait(self, placement: Placement) -> None:
        """Until a node is ready."""
        deadline = time.monotonic() + START
        while not self._dealer.ready:
            self.receive(LOOK)
            if time.monotonic() > deadline:
                raise RewardError(
                    f"no node of {placement} was ready within {START:g} s: what its workers need,"
                    f" {' '.join(placement.resources)}, is in use or reserved; free it, or ask for less with"
                    f" {placement.option('resources')}"
                )

    @property
    def count(self) -> int:
        """Workers that are ready now; 1 while all are being replaced."""
        return max(1, self._dealer.ready)

    def send(self, task: int, content: bytes, limit: float) -> None:
        """Gives a task, as bytes, to the next worker that is free, for at most so many seconds."""
        self._dealer.send(task, content, limit)

    def receive(self, seconds: float) -> list[Message]:
        """What happened since the last look; waits for it at most so long."""
        found: list[Message] = []
        with contextlib.suppress(queue.Empty):
            while True:
                said = self._dealer.said.get(timeout=0 if found else seconds)
                if isinstance(said, Exception):
                    raise said
                found += said
        return found


def scoring(reward: Callable[[Sample, Cond], Any], name: str, limits: Limits) -> Hosted:
    """Processes that know a reward."""
    what = f"reward '{name}'"
    return Hosted(what, "difftilt.rewards.ray_host", partial(_packed, reward, what, limits))


def _packed(reward: Any, what: str, limits: Limits) -> bytes:
    """A reward as bytes, with the code of what no other process could import by its name.

    Raises:
        RewardError: If it holds what cannot be sent.
    """
    cloudpickle: Any = importlib.import_module("ray.cloudpickle")
    files = [module for module_name, module in sys.modules.items() if _nowhere(module_name, module)]
    for module in files:
        cloudpickle.register_pickle_by_value(module)
    try:
        return cloudpickle.dumps((reward, limits))
    except Exception as error:
        raise RewardError(
            f"{what} cannot be sent to nodes of Ray: {described(error)}; make what it holds when it"
            " is first called, or score in processes of this machine with --reward-workers N"
        ) from error
    finally:
        for module in files:
            cloudpickle.unregister_pickle_by_value(module)


def _nowhere(name: str, module: Any) -> bool:
    """Whether a module was made of a file that does not lie where modules are looked for."""
    if "." in name or name == "__main__":
        return False
    loader = getattr(getattr(module, "__spec__", None), "loader", None)
    own = isinstance(loader, importlib.machinery.SourceFileLoader)
    return own and importlib.machinery.PathFinder.find_spec(name) is None


def _end(owner: int, dealer: Dealer, thread: threading.Thread, joined: Cluster) -> None:
    """Ends a pool from the process that made it; others only forget it."""
    if os.getpid() != owner:
        return
    dealer.close()
    thread.join()
    if dealer.lost:  # so that the next pool looks at the cluster anew
        joined.leave()
