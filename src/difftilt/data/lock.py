"""One process at a time works on a run folder. The kernel gives the lock back when a process dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from difftilt.data.read import UnreadableError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None

LOCK = ".lock"
_held: dict[Path, int] = {}  # handles of what this process has locked, by folder


class BusyError(ValueError):
    """Another process works on a run folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps other processes from working on a run folder while the block runs; made if it is missing.

    Within a block of the same process it does nothing.

    Raises:
        BusyError: If another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    place = folder.resolve()
    if place in _held or fcntl is None:
        yield
        return
    _held[place] = handle = _take(place / LOCK, folder)
    try:
        yield
    finally:
        if _held.pop(place, None) is not None:  # a forked child has let go already
            (place / LOCK).unlink(missing_ok=True)
            os.close(handle)


def _take(path: Path, folder: Path) -> int:
    """A handle of the lock file that no other process has locked."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise UnreadableError(f"{path} cannot be opened ({error.strerror}); remove it") from None
        try:
            _flock(handle)
        except BlockingIOError:
            os.close(handle)
            raise BusyError(
                f"{folder} is in use by another process of difftilt, so nothing was done; wait until it has"
                " ended, or name another folder"
            ) from None
        try:
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except FileNotFoundError:
            pass  # who had it has just removed it
        os.close(handle)


def _flock(handle: int) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return


def _release() -> None:
    """A forked child lets go, so that a process that outlives its parent keeps no folder locked."""
    while _held:
        os.close(_held.popitem()[1])


if fcntl is not None:
    os.register_at_fork(after_in_child=_release)
