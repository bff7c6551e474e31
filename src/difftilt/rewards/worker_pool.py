"""A pool of workers, as the process that asks sees it."""

import json
import multiprocessing
import os
import select
import signal
import sys
import time
import weakref
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from difftilt.rewards.process_tree import kill_sessions, lives
from difftilt.rewards.worker_task import Limits, Message
from difftilt.shapes import Cond, Sample

GATHER = (
    0.001  # seconds for which messages are left to gather, for to be woken by each costs more than it says
)
GRACE = 5.0  # seconds that the keeper has for ending
POLL = 0.005  # seconds between looks at whether it has
LOOK = 0.02  # seconds between looks at whether workers live
REAPED = 0.5  # seconds after which a process that is gone, and of which nothing is said, ended with code 0


class PoolLost(Exception):  # noqa: N818  (a pool can be made again)
    """The keeper has ended, or its pool is broken."""


class Pool:
    """Workers that know a reward, as the process that makes the pool sees it.

    Attributes:
        owner: That process.
        count: Workers.
    """

    def __init__(self, reward: Callable[[Sample, Cond], Any], limits: Limits, count: int):
        from difftilt.rewards.keeper import keep  # loads pebble, which only workers need

        self.owner, self.count, self._rest = os.getpid(), count, b""
        self._workers: dict[int, int] = {}  # the process that has begun with a task
        self._gone: dict[int, float] = {}  # when it was first found to be gone
        self._looked = 0.0
        tasks, self._tasks = multiprocessing.Pipe(duplex=False)
        self._results, results = os.pipe()
        sys.stdout.flush()  # else both processes would write what is waiting there
        sys.stderr.flush()
        self._keeper = os.fork()
        if self._keeper == 0:
            try:
                self._tasks.close()
                os.close(self._results)
                keep(reward, limits, count, tasks, results, self.owner)
            finally:
                os._exit(1)
        tasks.close()
        os.close(results)
        end = partial(_end, self.owner, self._keeper, self._tasks, self._results, self._workers)
        self.close = weakref.finalize(self, end)

    def kill(self) -> None:
        """Ends the processes before any of them begins with another task."""
        kill_sessions([self._keeper])  # workers end with it where the system lets them
        self.close()

    def send(self, task: int, content: bytes, limit: float) -> None:
        """Gives samples, as bytes, to the next worker that is free, for at most so many seconds."""
        try:
            self._tasks.send((task, content, limit))
        except OSError:
            raise PoolLost("took no more samples") from None

    def receive(self, seconds: float) -> list[Message]:
        """What happened since the last look; waits for it at most so long.

        Of every task it is said that it is over, whatever became of the process that had begun with it.
        """
        messages = self._read(seconds)
        for task, what, *details in messages:
            if what == "began":
                self._workers[task] = details[0]
            elif what == "over":
                worker = self._workers.pop(task, None)
                if worker is not None and details[0] is not None:
                    kill_sessions([worker])
        return messages + self._unsaid()

    def _read(self, seconds: float) -> list[Message]:
        look = select.poll()
        look.register(self._results, select.POLLIN)
        if not look.poll(seconds * 1000):
            if os.waitpid(self._keeper, os.WNOHANG)[0]:
                raise PoolLost("ended")
            return []
        time.sleep(GATHER)
        said = os.read(self._results, 1 << 16)
        if not said:
            raise PoolLost("ended")
        *lines, self._rest = (self._rest + said).split(b"\n")
        return [json.loads(line.decode()) for line in lines]

    def _unsaid(self) -> list[Message]:
        """What is to be said of processes that went without a word, as one that exits with code 0 does."""
        now = time.monotonic()
        if now - self._looked < LOOK:
            return []
        self._looked = now
        gone = [task for task, worker in self._workers.items() if not lives(worker)]
        self._gone = {task: self._gone.get(task, now) for task in gone}
        ended = [task for task, since in self._gone.items() if now - since > REAPED]
        if ended:
            kill_sessions([self._workers.pop(task) for task in ended])
        return [[task, "over", "ended its process with code 0"] for task in ended]


def _end(owner: int, keeper: int, tasks: Connection, results: int, workers: dict[int, int]) -> None:
    """Ends a pool from the process that made it; others only forget it."""
    mine = os.getpid() == owner
    if mine:
        try:
            tasks.send(None)
        except OSError:
            mine = True  # it has ended by itself
    tasks.close()
    os.close(results)
    deadline = time.monotonic() + GRACE
    while mine and _runs(keeper):
        if time.monotonic() > deadline:
            os.kill(keeper, signal.SIGKILL)
        time.sleep(POLL)
    if mine and workers:  # what they had begun is nobody's any more
        kill_sessions(workers.values())


def _runs(child: int) -> bool:
    try:
        return not os.waitpid(child, os.WNOHANG)[0]
    except ChildProcessError:
        return False
