"""Functions run by several processes at once, which are forks of the test and find each other by gloo."""

import os
import socket
import traceback
from collections.abc import Callable

from accelerate.state import AcceleratorState, GradientState, PartialState


def in_processes(count: int, work: Callable[[int], None]) -> None:
    """Runs `work(rank)` in so many processes.

    Raises:
        RuntimeError: If one of them fails; what it says stands in the output.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, count, port, work) for rank in range(count)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"the processes ended with {codes}")


def _fork(rank: int, count: int, port: int, work: Callable[[int], None]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        for state in (AcceleratorState, PartialState, GradientState):  # the test may have had its own
            state._reset_state()
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_WORLD_SIZE": str(count)}
        os.environ |= place | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        work(rank)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
