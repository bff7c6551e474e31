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

from difftilt.rewards.worker_task import CHUNK, Limits, Message, Work, packed
from difftilt.shapes import Cond, Sample

GATHER = (
    0.001  # seconds for which messages are left to gather, for to be woken by each costs more than it says
)
GRACE = 5.0  # seconds that the keeper has for ending
POLL = 0.005  # seconds between looks at whether it has


class PoolLost(Exception):  # noqa: N818  (a pool can be made again)
    """The keeper has ended, or its pool is broken."""


class Pool:
    """Workers that know a reward, as the process that makes the pool sees it."""

    def __init__(self, reward: Callable[[Sample, Cond], Any], limits: Limits):
        from difftilt.rewards.keeper import keep  # loads pebble, which only workers need

        self.owner, self.limits, self._rest = os.getpid(), limits, b""
        tasks, self._tasks = multiprocessing.Pipe(duplex=False)
        self._results, results = os.pipe()
        sys.stdout.flush()  # else both processes would write what is waiting there
        sys.stderr.flush()
        self._keeper = os.fork()
        if self._keeper == 0:
            try:
                self._tasks.close()
                os.close(self._results)
                keep(reward, limits, tasks, results, self.owner)
            finally:
                os._exit(1)
        tasks.close()
        os.close(results)
        end = partial(_end, self.owner, self._keeper, self._tasks, self._results)
        self.close = weakref.finalize(self, end)

    def send(self, task: int, work: Work) -> None:
        """Gives the samples to the next worker that is free."""
        limit = self.limits.timeout + (CHUNK if len(work.draws) > 1 else 0)
        try:
            self._tasks.send((task, packed(work), limit))
        except OSError:
            raise PoolLost("took no more samples") from None

    def receive(self, seconds: float) -> list[Message]:
        """What happened since the last look; waits for it at most so long."""
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


def _end(owner: int, keeper: int, tasks: Connection, results: int) -> None:
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
    while mine:
        try:
            if os.waitpid(keeper, os.WNOHANG)[0]:
                return
        except ChildProcessError:
            return
        if time.monotonic() > deadline:
            os.kill(keeper, signal.SIGKILL)
        time.sleep(POLL)
