"""What decides a reward's answers, as a hash: two rewards that differ must not share what was paid for."""

import functools
import hashlib
import inspect
import shutil
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from difftilt.conditions import as_bytes
from difftilt.rewards.command import CommandReward


def fingerprint(reward: Any, name: str) -> str:
    """A hash of all that a reward is made of: the files of its code, and what it holds.

    What it reads while it runs, such as the weights of a model or a server, is not seen.

    Raises:
        ValueError: If it holds something that cannot be looked into.
    """
    digest = hashlib.sha256()
    for piece in _pieces(reward, name, {}):
        digest.update(piece + b"\0")
    return digest.hexdigest()[:16]


def _pieces(value: Any, name: str, seen: dict[int, Any]) -> Iterator[bytes]:
    """The bytes of a value, whatever it is."""
    if id(value) in seen:
        return
    yield type(value).__qualname__.encode()
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | Path):
        yield repr(value).encode()
        return
    if isinstance(value, Tensor | np.ndarray | np.generic):
        yield from (repr((value.dtype, tuple(value.shape))).encode(), _raw(value))
        return
    seen[id(value)] = value  # so that no other value gets its number
    for part in _parts(value, name):
        yield from _pieces(part, name, seen)


def _raw(value: Any) -> bytes:
    return as_bytes(value) if isinstance(value, Tensor) else np.ascontiguousarray(value).tobytes()


def _parts(value: Any, name: str) -> Sequence[Any]:
    """What a value consists of."""
    if isinstance(value, CommandReward):
        files = [shutil.which(value.words[0]), *value.words[1:]]
        return [value.words, [_content(Path(file)) for file in files if file and Path(file).is_file()]]
    if isinstance(value, Mapping):
        return [item for pair in value.items() for item in pair]
    if isinstance(value, list | tuple | Set):
        return sorted(value, key=repr) if isinstance(value, Set) else value
    code = _code_parts(value)
    if code is not None:
        return code
    held = getattr(value, "__dict__", None)
    if held is None:
        raise ValueError(
            f"a ledger must tell the versions of reward '{name}' apart, but it holds a"
            f" {type(value).__name__}, which cannot be looked into; state its version with --reward-version"
        )
    return [type(value), held]


def _code_parts(value: Any) -> Sequence[Any] | None:
    """What code consists of; None of anything else."""
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType) and inspect.unwrap(value) is not value:
        return [inspect.unwrap(value)]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return [_code(value), value.__defaults__, value.__kwdefaults__, *cells]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_consts, value.co_names]
    return [_code(value)] if isinstance(value, types.ModuleType | types.BuiltinFunctionType | type) else None


def _code(value: Any) -> list[Any]:
    """Where a function or class stands, and its file; its instructions if there is no file."""
    where = [getattr(value, "__qualname__", value.__name__)]
    try:
        file = Path(inspect.getsourcefile(value) or "")
    except TypeError:
        return where
    code = getattr(value, "__code__", None)
    if file.is_file():
        return [*where, _content(file), getattr(code, "co_firstlineno", 0)]
    return [*where, code]


@cache
def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
