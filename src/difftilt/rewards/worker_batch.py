"""What workers know of the samples that they were given."""

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from difftilt.answers import Failure
from difftilt.conditions import concat, context_keys, rows_as_bytes, take
from difftilt.rewards.worker_task import Work
from difftilt.shapes import Cond, Sample


@dataclass
class Task:
    """Samples that a worker was given.

    Attributes:
        rows: Those without an answer; the first one is being scored.
        begun: Whether it is.
    """

    rows: deque[int]
    begun: bool = False


class Batch:
    """Samples of one call, and how far each of them is.

    Attributes:
        numbers: Of each row since the start of the run.
        told: What `on_result` calls a row.
    """

    def __init__(self):
        self.numbers: list[int] = []
        self.sample: Sample = torch.empty(0)
        self.cond: Cond = {}
        self.answers: dict[int, float | Failure] = {}
        self.told: dict[int, int] = {}
        self.waiting: deque[int] = deque()
        self.running: dict[int, Task] = {}
        self.suspects: deque[int] = deque()  # waiting to be scored alone, for one of them ended all processes
        self.doubted: set[int] = set()  # they, and those that were
        self.attempts: list[int] = []
        self.lost: Counter[int] = Counter()  # with how many nodes each row was
        self.losses, self.heard = 0, time.monotonic()

    @property
    def open(self) -> bool:
        return len(self.answers) < len(self.attempts)

    def add(self, sample: Sample, cond: Cond, numbers: Sequence[int]) -> range:
        """Appends samples; returns their rows."""
        start = len(self.attempts)
        self.sample = torch.cat([self.sample, sample]) if start else sample
        self.cond = concat([self.cond, cond]) if start else cond
        rows = range(start, start + len(sample))
        self.numbers += numbers
        self.attempts += [0] * len(sample)
        self.waiting.extend(rows)
        self.told |= dict(zip(rows, rows, strict=True))
        self.heard = time.monotonic()  # nobody has listened since the last time
        return rows

    def find(self, sample: Sample, cond: Cond, numbers: Sequence[int]) -> list[int]:
        """The rows of samples, each of its own; what was not prefetched is added."""
        free: dict[tuple[bytes, str], deque[int]] = {}
        for row, key in enumerate(_keys(self.sample, self.cond) if self.attempts else ()):
            free.setdefault(key, deque()).append(row)
        keys = _keys(sample, cond) if free else [(b"", "")] * len(sample)
        found = [free[key].popleft() if free.get(key) else -1 for key in keys]
        new = [i for i, row in enumerate(found) if row < 0]
        if new:
            index = torch.tensor(new)
            rows = self.add(sample[index], take(cond, index), [numbers[i] for i in new])
            for i, row in zip(new, rows, strict=True):
                found[i] = row
        self.told, self.heard = {row: i for i, row in enumerate(found)}, time.monotonic()
        return found

    @property
    def doubtful(self) -> bool:
        """Whether samples must be scored alone."""
        alone = any(row in self.doubted for task in self.running.values() for row in task.rows)
        return alone or bool(self.suspects)

    def work(self, rows: Sequence[int], seed: int) -> Work:
        index = torch.tensor(rows)
        draws = [(self.numbers[row], self.attempts[row]) for row in rows]
        return Work(seed, draws, self.sample[index], take(self.cond, index))


def _keys(sample: Sample, cond: Cond) -> list[tuple[bytes, str]]:
    """What tells samples of one round apart, with their conditions."""
    return list(zip(rows_as_bytes(sample), context_keys(cond), strict=True))
