"""Processes, and what they have started: whether they live, and how they end together."""

import os
import signal
from collections.abc import Callable, Iterable
from pathlib import Path


def lives(process: int) -> bool:
    """Whether a process has neither ended nor been taken note of by the one that started it."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def kill_group(leader: int) -> None:
    """Kills the processes of a group; none may be left."""
    _kill(os.killpg, leader)


def kill_sessions(leaders: Iterable[int]) -> None:
    """Kills the processes of sessions; of groups inside of them only where /proc tells of them."""
    sessions = set(leaders)
    for leader in sessions:
        kill_group(leader)
    for entry in Path("/proc").glob("[0-9]*"):
        process = int(entry.name)
        try:
            session = os.getsid(process)
        except (ProcessLookupError, PermissionError):
            continue
        if session in sessions:
            _kill(os.kill, process)


def _kill(how: Callable[[int, int], None], number: int) -> None:
    try:
        how(number, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
