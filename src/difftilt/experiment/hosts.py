"""Processes of this machine that are each given one task at a time, as the process that asks sees them."""

import contextlib
from collections import deque
from functools import partial
from multiprocessing.connection import wait
from typing import Any

from difftilt.rewards.ray_node import Host
from difftilt.rewards.worker_task import Message


class Hosts:
    """The processes. One that ends is replaced, and what it was at is said to be lost.

    Args:
        program: The module that each of them runs.
        content: What it is to know.
        count: How many, at least 1.
    """

    def __init__(self, program: str, content: Any, count: int):
        self._start = partial(Host, program, content, [], 1)
        self._waiting: deque[tuple[Any, ...]] = deque()
        self._given: dict[Host, int | None] = {self._start(): None for _ in range(count)}

    def send(self, task: int, content: bytes, limit: float) -> None:
        """Gives a task, as bytes, to the next process that is free, for at most so many seconds."""
        self._waiting.append((task, content, limit))
        self._deal()

    def receive(self, seconds: float) -> list[Message]:
        """What happened since the last look; waits for it at most so long."""
        found: list[Message] = []
        ready = wait([host.fileno() for host in self._given], seconds)
        for host in [host for host in self._given if host.fileno() in ready]:
            try:
                found += self._heard(host, host.receive(0.0) or [])
            except (EOFError, OSError):
                found += [[task, "lost"] for task in [self._given.pop(host)] if task is not None]
                host.close()
                self._given[self._start()] = None
        self._deal()
        return found

    def close(self) -> None:
        """Ends the processes, with all that they have started."""
        while self._given:
            self._given.popitem()[0].close()

    def _heard(self, host: Host, said: list[Any]) -> list[Message]:
        messages = [message for message in said if message is not None]  # which says that it is ready
        for task, what, *_ in messages:
            if what == "over" and self._given[host] == task:
                self._given[host] = None
        return messages

    def _deal(self) -> None:
        for host, task in self._given.items():
            if task is None and self._waiting:
                self._given[host] = self._waiting[0][0]
                with contextlib.suppress(OSError):  # one that has ended is dealt with where it is heard
                    host.send(*self._waiting[0])
                self._waiting.popleft()
