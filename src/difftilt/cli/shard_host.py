"""The process that draws shards for another one: python -m difftilt.cli.shard_host DESCRIPTOR.

It is told the command line of `difftilt sample`, and then one shard after the other, through a pipe. When the
pipe is closed, however the other process ended, it ends, with all that it has started.
"""

import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

from difftilt.answers import described
from difftilt.cli.main import outcome
from difftilt.cli.sample import drawer_of
from difftilt.rewards.process_tree import kill_sessions


def main() -> None:
    """Draws shards until nobody asks any more."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process decides what it means
    os.dup2(2, 1)  # what recipes print is no part of what the command says
    try:
        _serve(Connection(int(sys.argv[1])))
    except (EOFError, OSError):
        _end()


def _serve(pipe: Connection) -> None:
    """Draws what it is told to.

    Raises:
        EOFError, OSError: If nobody asks any more.
    """
    (words, place), _ = pipe.recv()
    try:
        os.chdir(place)
    except OSError as error:
        pipe.send([described(error)])
        return
    pipe.send([None])
    tasks = queue.SimpleQueue[int]()
    threading.Thread(target=_listen, args=(pipe, tasks), daemon=True).start()
    draw: Callable[[int], bool] | None = None
    while True:
        task, why = tasks.get(), None
        pipe.send([[task, "began"]])
        try:
            draw = draw or drawer_of(words)
            draw(task)
        except BaseException as error:
            why = _sentence(error)
        pipe.send([[task, "over", why]])


def _sentence(error: BaseException) -> str:
    """What the command would say of an error."""
    try:
        return outcome(error)[0]
    except BaseException:
        return f"a worker raised {described(error)}"


def _listen(pipe: Connection, tasks: queue.SimpleQueue[int]) -> None:
    try:
        while True:
            tasks.put(pipe.recv()[0])
    except (EOFError, OSError):
        _end()


def _end() -> None:
    """Ends this process and all that it has started, from outside of its session."""
    here = os.getpid()
    if not os.fork():
        os.setsid()
        kill_sessions([here])
        os._exit(0)


if __name__ == "__main__":
    main()
