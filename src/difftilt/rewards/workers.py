"""Any reward, in processes of its own: what hangs, crashes or exits costs one sample, never the run."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from difftilt.answers import Failure, RewardError, learner_of
from difftilt.rewards.ray_cluster import Placement
from difftilt.rewards.ray_pool import RayPool, scoring
from difftilt.rewards.worker_batch import Batch, Task
from difftilt.rewards.worker_pool import Pool, PoolLost
from difftilt.rewards.worker_task import CHUNK, LOSSES, QUEUED, Limits, Message, limit_of, packed, unsent
from difftilt.settings import Count, Natural, check_value
from difftilt.shapes import Cond, Sample

SILENCE = 10.0  # seconds beyond the time limit after which workers that say nothing are replaced
LOOK = 0.02  # seconds for which what workers say is waited for
RECENT = 0.1  # weight of the latest sample in what a sample is thought to take


class Workers:
    """A reward whose samples are scored one at a time, by several processes.

    A sample has no number if the reward raises, exits, takes too long, ends its process, needs too much
    memory, or answers with anything but one finite number; the others are not affected, and a process that
    ended is replaced. No answer that was given is paid for twice: if a process ends, only the sample that it
    was working on may be tried again.

    Processes are made at the first call, by fork, and know the reward as it is then. Each call gets a single
    sample, on the CPU, on one thread, with Python's, numpy's and torch's generators seeded by the seed, the
    number of the sample since the start of the run, and the attempt: what it draws does not depend on which
    worker it is scored by, or when. No gradient passes. Where a reward takes longer to begin than to score,
    it is quicker without workers, in batches.

    Args:
        reward: As for `Guard`, but it must not learn.
        count: Processes of this machine, or those that Ray places; see `Placement`.
        timeout: Seconds that one sample may take, from when it is begun. Samples that take a few milliseconds
            or less are given out several at a time; then the limit may be exceeded by 0.05 seconds.
        retries: How often a sample is tried again that raised, took too long or ended its process.
        memory: MiB that a worker may hold beyond what it has when it is made, and any program that it starts
            beyond the same. It is private memory that counts (RLIMIT_DATA of Linux), used or not; files and
            shared memory do not.
        seed: Of what the reward draws.
        on_result: Told the row and the number of each sample as soon as it is known, in this process.

    Attributes:
        asked: Samples so far.
        numbers: Those of the next call's samples since the start of the run, if `asked` does not tell them.
        tasks: Tasks so far, of one sample or of several.

    Raises:
        ValueError: If the reward learns, or the system has no fork.
        RewardError: When it is called, if no process can be kept alive, or a condition cannot be sent to one.
    """

    def __init__(
        self,
        reward: Callable[[Sample, Cond], Any],
        count: int | Placement,
        timeout: float,
        retries: int = 0,
        memory: int | None = None,
        seed: int = 0,
        on_result: Callable[[int, float], None] | None = None,
    ):
        self.__name__ = getattr(reward, "__name__", type(reward).__name__)
        if learner_of(reward) is not None:
            raise ValueError(
                f"reward '{self.__name__}' learns, but got {count} workers, in which what it learns would be"
                " lost; score it without workers"
            )
        if sys.platform == "win32":
            raise ValueError(f"got {count} workers, but this system has no fork; score without workers")
        check_value("seed", seed, Natural)
        if not isinstance(count, Placement):
            check_value("count", count, Count)
        self.count, self.limits, self.seed = count, Limits(timeout, retries, memory), seed
        self.reward, self.on_result, self.asked, self.tasks = reward, on_result, 0, 0
        self.numbers: Sequence[int] | None = None
        self._pool: Pool | RayPool | None = None
        self._ahead: Batch | None = None  # what was prefetched
        self._seconds: float | None = None  # that a sample is thought to take

    def __call__(self, sample: Sample, cond: Cond) -> list[float | Failure]:
        batch, self._ahead = self._ahead or Batch(), None
        rows = batch.find(sample.detach().cpu(), cond, self._numbers(0, len(sample)))
        self.asked += len(sample)
        while batch.open:
            self._advance(batch, None, LOOK)
        return [batch.answers[row] for row in rows]

    def prefetch(self, sample: Sample, cond: Cond) -> None:
        """Begins with samples of which the next call will ask, and returns at once.

        `on_result` is told their rows among all that were prefetched since the last call.
        """
        batch = self._ahead or Batch()
        batch.add(sample.detach().cpu(), cond, self._numbers(len(batch.attempts), len(sample)))
        self._advance(batch, len(batch.attempts), 0.0)
        self._ahead = batch

    def _numbers(self, start: int, count: int) -> Sequence[int]:
        """What the next samples are numbered by."""
        given, self.numbers = self.numbers, None
        return range(self.asked + start, self.asked + start + count) if given is None else given

    def close(self) -> None:
        """Ends the processes; the next call makes new ones."""
        if self._pool is not None:
            self._pool.close()
        self._pool = self._ahead = None

    def state_dict(self) -> dict[str, Any]:
        return {"asked": self.asked}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.asked = state["asked"]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": None, "_ahead": None}

    def _ready(self, batch: Batch) -> Pool | RayPool:
        """The pool of this process."""
        if self._pool is None or self._pool.owner != os.getpid():
            if isinstance(self.count, Placement):
                self._pool = RayPool(scoring(self.reward, self.__name__, self.limits), self.count)
            else:
                self._pool = Pool(self.reward, self.limits, self.count)
            batch.heard = time.monotonic()
        return self._pool

    def _advance(self, batch: Batch, most: int | None, seconds: float) -> None:
        """Has workers go on with a batch; what is not mendable ends them."""
        try:
            self._exchange(batch, most, seconds)
        except PoolLost as lost:
            self.close()
            self._recover(batch, str(lost))
        except BaseException:
            self.close()  # what is being scored now is nobody's any more
            raise

    def _exchange(self, batch: Batch, most: int | None, seconds: float) -> None:
        """Gives out tasks, so many at most or as many as keep workers busy, and takes what they say."""
        pool = self._ready(batch)
        if batch.suspects and not batch.running:
            self._give(pool, batch, [batch.suspects.popleft()])
        busy = QUEUED * pool.count
        most = 0 if batch.doubtful else busy if most is None else most
        while batch.waiting and len(batch.running) < most:
            rows = [batch.waiting.popleft() for _ in range(self._size(len(batch.waiting) // busy))]
            self._give(pool, batch, rows)
        for message in pool.receive(seconds):
            batch.heard = time.monotonic()
            self._note(batch, message)
        if time.monotonic() - batch.heard > self.limits.timeout + SILENCE:
            raise PoolLost("said nothing for too long")

    def _give(self, pool: Pool | RayPool, batch: Batch, rows: Sequence[int]) -> None:
        self.tasks += 1
        batch.running[self.tasks] = Task(deque(rows))
        work = batch.work(rows, self.seed)
        pool.send(self.tasks, packed(work), limit_of(work, self.limits))

    def _size(self, share: int) -> int:
        """How many samples the next task gets, so that it takes `CHUNK` and all workers end together."""
        if self._seconds is None:
            return 1
        return max(1, min(int(CHUNK / max(self._seconds, 1e-6)), share))

    def _note(self, batch: Batch, message: Message) -> None:
        """Takes note of what happened to a task, unless it is one of the past."""
        number, what, *details = message
        task = batch.running.get(number)
        if task is None:
            return
        if what == "unread":
            raise RewardError(unsent(*details))
        if what == "began":
            task.begun = True
        elif what == "over":
            self._over(batch, number, *details)
        elif what == "lost":
            self._lost(batch, number)
        else:
            said, seconds = details
            before = seconds if self._seconds is None else self._seconds
            self._seconds = before + RECENT * (seconds - before)
            row = task.rows.popleft()
            if what == "number":
                batch.answers[row] = said
                if self.on_result is not None and row in batch.told:
                    self.on_result(batch.told[row], said)
            else:
                self._failed(batch, row, said, again=what == "raised")

    def _over(self, batch: Batch, number: int, why: str | None) -> None:
        """A task has ended; if its process has, that is because of the first sample without an answer."""
        task = batch.running.pop(number)
        if why is not None and task.rows:
            self._failed(batch, task.rows.popleft(), why, again=True)
        batch.waiting.extendleft(reversed(task.rows))

    def _lost(self, batch: Batch, number: int) -> None:
        """A node was lost in the midst of a task; what it had not answered waits again, but not forever."""
        rows = batch.running.pop(number).rows
        for row in list(rows)[:1]:
            batch.lost[row] += 1
            if batch.lost[row] == LOSSES:
                rows.popleft()
                why = f"was being scored on each of {LOSSES} nodes that were lost"
                self._failed(batch, row, why, again=False)
        batch.waiting.extendleft(reversed(rows))

    def _failed(self, batch: Batch, row: int, why: str, again: bool) -> None:
        batch.attempts[row] += 1
        tries = batch.attempts[row]
        if again and tries <= self.limits.retries:
            batch.waiting.append(row)
        else:
            batch.answers[row] = Failure(why if tries == 1 else f"{why} at the last of {tries} attempts")

    def _recover(self, batch: Batch, why: str) -> None:
        """After a pool was lost: what it had not answered waits again, but not forever."""
        begun = [task for task in batch.running.values() if task.begun and task.rows]
        batch.losses += not begun
        if batch.losses >= LOSSES:
            raise RewardError(
                f"reward '{self.__name__}' cannot be scored by {self.count} workers: what watches them"
                f" {why} {LOSSES} times before a sample was begun; score it without workers"
            )
        for row in [task.rows.popleft() for task in begun]:
            if row in batch.doubted:  # it was scored alone
                self._failed(batch, row, "ended the processes beside its own", again=False)
            else:
                batch.doubted.add(row)
                batch.suspects.append(row)
        for task in batch.running.values():
            batch.waiting.extend(task.rows)
        batch.running.clear()
        batch.heard = time.monotonic()
