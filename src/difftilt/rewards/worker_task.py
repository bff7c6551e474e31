"""What `Workers` sends to its processes: samples to score, as bytes."""

from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from difftilt.answers import RewardError, described
from difftilt.conditions import as_bytes
from difftilt.settings import Count, Natural, Positive, check_settings

CHUNK = 0.05  # seconds that a task of several samples is meant to take
QUEUED = 2  # tasks per worker that are given out: one is scored while the next one waits
LOSSES = 3  # how often what watches workers may be lost before something is given up
Message = list[Any]  # the number of a task, what happened, and details


@dataclass(frozen=True)
class Limits:
    """What workers may use; see `Workers`."""

    timeout: Positive
    retries: Natural
    memory: Count | None

    def __post_init__(self):
        check_settings(self)


@dataclass(frozen=True)
class Work:
    """Samples to score, one after the other.

    Args:
        seed: Of the reward, at least 0.
        draws: The number of each sample's call, and which attempt it is, from 0.
    """

    seed: int
    draws: list[tuple[int, int]]
    sample: Any
    cond: Any


def limit_of(work: Work, limits: Limits) -> float:
    """Seconds that a task may take."""
    return limits.timeout + (CHUNK if len(work.draws) > 1 else 0)


def packed(work: Work) -> bytes:
    """Samples as bytes.

    Raises:
        RewardError: If a condition is nothing that can be sent.
    """
    try:
        return bytes(ForkingPickler.dumps(_each(work, _plain)))
    except Exception as error:
        raise RewardError(unsent(described(error))) from error


def unpacked(content: bytes) -> Work:
    """The samples again, in a worker."""
    return _each(ForkingPickler.loads(content), _tensor)  # pyright: ignore[reportAttributeAccessIssue]


def unsent(why: str) -> str:
    """What to say of conditions that do not reach a worker."""
    return (
        f"conditions must be data that can be sent to workers, but got {why}; leave them out, or score"
        " without workers"
    )


@dataclass(frozen=True)
class _Plain:
    """A tensor as bytes, for torch would send it as a file descriptor."""

    content: bytes
    dtype: torch.dtype
    shape: tuple[int, ...]


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Plain(as_bytes(value), value.dtype, tuple(value.shape))
    return _each(value, _plain)


def _tensor(value: Any) -> Any:
    if not isinstance(value, _Plain):
        return _each(value, _tensor)
    if not value.content:
        return torch.empty(value.shape, dtype=value.dtype)
    return torch.frombuffer(bytearray(value.content), dtype=value.dtype).reshape(value.shape)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same container, with every item changed."""
    if isinstance(value, Work):
        return Work(value.seed, value.draws, change(value.sample), change(value.cond))
    if type(value) is dict:
        return {key: change(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(change(item) for item in value)
    return value
