"""An actor of Ray on a node: it starts our own pools there, and passes on what they are told, and say.

A process that talks to Ray has threads and sockets that forks must not share, so pools live in processes that
are started afresh. Nothing here loads torch: an actor needs none.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from typing import Any

WAIT = 1.0  # seconds after which an actor says that there is nothing to say
LOOK = 0.05  # seconds between looks at whether its raylet lives, where the system does not tell


class Host:
    """The process of one pool, as whoever starts it sees it.

    Args:
        program: The module that it runs.
        content: What it is to know, with `count`, before it is given tasks.
        path: Where it finds modules, behind where this process does.
    """

    def __init__(self, program: str, content: Any, path: list[str], count: int):
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        words = [sys.executable, "-m", program, str(number)]
        place = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, *path]))}
        self._process = subprocess.Popen(words, env=place, pass_fds=[number], stdin=subprocess.DEVNULL)
        theirs.close()
        self._sending = threading.Lock()
        self.send(content, count)

    def send(self, *message: Any) -> None:
        with self._sending:
            self._pipe.send(message)

    def receive(self, seconds: float) -> Any:
        """What it says next; None if that takes longer.

        Raises:
            EOFError: If the process has ended.
        """
        return self._pipe.recv() if self._pipe.poll(seconds) else None

    def fileno(self) -> int:
        """What can be waited for until it says something."""
        return self._pipe.fileno()

    def sever(self) -> None:
        """Has it end with its workers, whoever else uses the pipe now."""
        with socket.socket(fileno=os.dup(self.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends it, and the workers with it."""
        self._pipe.close()
        self._process.wait()


class Node:
    """The actor. Its methods are called by several threads.

    Args:
        count: Workers of each pool.
    """

    def __init__(self, count: int):
        self._count, self._hosts = count, dict[int, Host]()
        threading.Thread(target=self._end_with, args=(os.getppid(),), daemon=True).start()

    def open(self, pool: int, program: str, content: Any, path: list[str]) -> str | None:
        """Starts a pool.

        Args:
            program: The module that its process runs.
            content: What it is to know, such as a reward and its limits.
            path: Where the asking process finds modules.

        Returns:
            What kept it from being made here, if anything did.
        """
        self.close(pool)
        self._hosts[pool] = host = Host(program, content, path, self._count)
        while (said := host.receive(WAIT)) is None:
            pass
        return said[0]

    def send(self, pool: int, *task: Any) -> None:
        host = self._hosts.get(pool)
        try:
            if host is not None:
                host.send(*task)
        except OSError:  # whoever receives is told that it has ended
            return

    def receive(self, pool: int) -> list[Any]:
        """What happened; waits for it a while.

        Raises:
            EOFError: If the pool was lost.
        """
        host = self._hosts.get(pool)
        if host is None:
            raise EOFError
        return host.receive(WAIT) or []

    def close(self, pool: int) -> None:
        host = self._hosts.pop(pool, None)
        if host is not None:
            host.close()

    def _end_with(self, raylet: int) -> None:
        """Ends with the process that has started this one, whoever inherits it; Ray looks for process 1.

        At once, as whatever is begun on a lost node is begun twice.
        """
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # of a kernel before 5.3, or if it is gone already
                ended = select.poll()
                ended.register(os.pidfd_open(raylet), select.POLLIN)
                ended.poll()
        while os.getppid() == raylet:
            time.sleep(LOOK)
        for host in list(self._hosts.values()):
            with contextlib.suppress(OSError):
                host.sever()  # the end of this process, which is large, takes a while
        os._exit(1)
