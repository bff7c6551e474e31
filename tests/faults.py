"""Makes the n-th file operation of a run go wrong, without any hook in the library."""

import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Act = Callable[[str], None]


@contextmanager
def at_operation(
    number: int, act: Act, places: Sequence[str] = ("/checkpoints", "metrics.jsonl")
) -> Iterator[list[str]]:
    """Calls `act` with the name of the n-th operation on the checkpoints and the log, from 1.

    Each of them counts before and after it, and a write when half of it is on the disk. Yields the names of
    the operations so far.

    Args:
        places: What one of has to stand in a path whose operations count.
    """
    seen: list[str] = []

    def count(name: str) -> None:
        seen.append(name)
        if len(seen) == number:
            act(name)

    def around(function: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(function)
        def run(target: Any, *args: Any, **kwargs: Any) -> Any:
            if not _counts(target, places):
                return function(target, *args, **kwargs)
            count(f"before {name}")
            result = function(target, *args, **kwargs)
            count(f"after {name}")
            return result

        return run

    def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        file = real_open(path, mode, *args, **kwargs)
        return _Half(file, count) if mode == "wb" and _counts(path, places) else file

    real_open = io.open
    names = [(os, "fsync"), (os, "replace"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir")]
    real = [getattr(module, name) for module, name in names]
    for (module, name), function in zip(names, real, strict=True):
        setattr(module, name, around(function, name))
    io.open = opened
    try:
        yield seen
    finally:
        io.open = real_open
        for (module, name), function in zip(names, real, strict=True):
            setattr(module, name, function)


class _Half:
    """A file whose writes can be stopped half-way."""

    def __init__(self, file: Any, count: Act):
        self._file, self._count = file, count

    def __enter__(self) -> "_Half":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        self._count("half write")
        self._file.write(data[len(data) // 2 :])
        return len(data)


def _counts(target: Any, places: Sequence[str]) -> bool:
    path = str(Path(f"/proc/self/fd/{target}").readlink() if isinstance(target, int) else target)
    return any(place in path for place in places)
