"""The process that holds a pool of workers on a node of Ray: python -m difftilt.rewards.ray_host DESCRIPTOR.

The pool is that of `worker_pool`, with its keeper, its limits and its way of replacing the dead. What it is
to do comes through a pipe from the actor that has started this process, and what happens goes back through
it. When the pipe is closed, however the actor ended, the workers end too.
"""

import os
import signal
import sys
import threading
from multiprocessing.connection import Connection

from difftilt.answers import described
from difftilt.rewards.worker_pool import Pool, PoolLost

LOOK = 0.1  # seconds for which what workers say is waited for


def main() -> None:
    """Makes the pool, and serves it until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asking process decides what it means
    pipe = Connection(int(sys.argv[1]))
    content, count = pipe.recv()
    try:
        from ray import cloudpickle

        reward, limits = cloudpickle.loads(content)
    except BaseException as error:
        pipe.send([described(error)])
        return
    pool = Pool(reward, limits, count)
    pipe.send([None])
    threading.Thread(target=_tell, args=(pool, pipe), daemon=True).start()
    try:
        while True:
            pool.send(*pipe.recv())
    except (EOFError, OSError, PoolLost):
        _end(pool)


def _tell(pool: Pool, pipe: Connection) -> None:
    """Passes on what workers say, as long as somebody listens."""
    try:
        while True:
            if messages := pool.receive(LOOK):
                pipe.send(messages)
    except (OSError, PoolLost):
        _end(pool)


def _end(pool: Pool) -> None:
    """At once, as what is begun now is begun again elsewhere."""
    pool.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
