"""Answers that were paid for, on disk: written down before they are used, and never paid for again.

One SQLite file serves many runs and processes. An answer is found by the reward, its version, the sample and
its conditions. Who asks for a sample claims it first, so that two processes never pay for the same one: the
second waits for the first one's answer, and takes over if that process has died.
"""

import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from difftilt.answers import Failure, Prefetching, RewardError, item_of, kind_of, learner_of, numbers_of
from difftilt.conditions import sample_keys, take
from difftilt.data.database import Database
from difftilt.shapes import Cond, Sample

STALE = 3600.0  # seconds after which a claim of another machine, whose processes cannot be seen, is void
POLL = 0.05  # seconds between looks at what another process has claimed
_TABLES = """
CREATE TABLE IF NOT EXISTS answer (
    reward TEXT, version TEXT, sample TEXT, ask TEXT, number REAL NOT NULL, text TEXT, at REAL,
    PRIMARY KEY (reward, version, sample, ask)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS failure (reward TEXT, version TEXT, sample TEXT, reason TEXT, at REAL);
CREATE TABLE IF NOT EXISTS claim (
    reward TEXT, version TEXT, sample TEXT, ask TEXT, owner TEXT, at REAL,
    PRIMARY KEY (reward, version, sample, ask)) WITHOUT ROWID;
"""
_WHERE = "WHERE reward = ? AND version = ? AND sample = ? AND ask = ?"
COLUMNS = ("reward", "version", "sample", "ask", "number", "text", "at")


class LedgerError(RewardError):
    """A file is no ledger, or cannot be read or written."""


@runtime_checkable
class Streaming(Protocol):
    """A reward that says each number as soon as it has it: `on_result(row, number)`."""

    on_result: Callable[[int, float], None] | None

    def __call__(self, sample: Sample, cond: Cond, /) -> Any: ...


@runtime_checkable
class Numbered(Protocol):
    """A reward that draws by the numbers of its samples, as `Workers` does."""

    numbers: Sequence[int] | None
    asked: int

    def __call__(self, sample: Sample, cond: Cond, /) -> Any: ...


class Ledger:
    """The answers in a file.

    Args:
        path: Made if it is missing.

    Raises:
        LedgerError: When it is used, if the file is none or the disk refuses.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._database = Database(self.path, _TABLES)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        try:
            with self._database.writing() as connection:
                yield connection
        except sqlite3.Error as error:
            raise LedgerError(
                f"the ledger {self.path} cannot be used: {error}; name a file that difftilt wrote, or a"
                " new one"
            ) from None

    def rows(self) -> list[tuple[Any, ...]]:
        """All answers, in the order of `COLUMNS`."""
        with self.writing() as connection:
            return connection.execute(f"SELECT {', '.join(COLUMNS)} FROM answer ORDER BY at").fetchall()

    def add(self, rows: Iterable[Sequence[Any]]) -> int:
        """Adds answers, in the order of `COLUMNS`; what is known stays. Returns how many were new."""
        with self.writing() as connection:
            before = connection.total_changes
            marks = ", ".join("?" * len(COLUMNS))
            connection.executemany(f"INSERT OR IGNORE INTO answer VALUES ({marks})", rows)
            return connection.total_changes - before

    def stats(self) -> list[dict[str, Any]]:
        """Per reward and version: answers, samples, mean, least and greatest number, failures, last use."""
        with self.writing() as connection:
            found = connection.execute(
                "SELECT reward, version, COUNT(*), COUNT(DISTINCT sample), AVG(number), MIN(number),"
                " MAX(number), MAX(at) FROM answer GROUP BY reward, version ORDER BY MAX(at)"
            ).fetchall()
            failures = "SELECT reward, version, COUNT(*) FROM failure GROUP BY reward, version"
            failed = {tuple(names): count for *names, count in connection.execute(failures)}
        names = ("reward", "version", "answers", "samples", "mean", "least", "greatest", "last")
        every = [dict(zip(names, row, strict=True)) for row in found]
        return [{**row, "failures": failed.get((row["reward"], row["version"]), 0)} for row in every]


Key = tuple[str, str, str, str]  # reward, version, sample, ask


class Recorded:
    """A reward whose answers are in a ledger; an answer that is there already is not asked for again.

    Attributes:
        run: What the asks of a noisy reward are told apart by, with their number within the run.

    Args:
        reward: As for `Guard`.
        name: What the ledger calls it.
        version: Of the reward: answers of other versions are not used.
        noisy: Each ask is an ask of its own, whose answer is kept beside the earlier ones; only the same run,
            when it goes on after a kill, finds what it had already paid for. Else a sample has one answer.
        spell: Writes samples as text, for people who read the ledger.
    """

    def __init__(
        self,
        reward: Callable[[Sample, Cond], Any],
        ledger: Ledger,
        name: str,
        version: str,
        *,
        noisy: bool = False,
        spell: Callable[[Sample], list[str]] | None = None,
    ):
        self.reward, self.ledger, self.__name__, self.version = reward, ledger, name, version
        self.noisy, self.asked, self.run = noisy, 0, uuid.uuid4().hex
        self._spell = spell
        self._ahead: dict[Key, str] = {}  # what was prefetched since the last call, as text
        self._looked = 0  # samples of which it was told

    def __call__(self, sample: Sample, cond: Cond) -> list[float | Failure]:
        ahead, self._ahead, self._looked = self._ahead, {}, 0
        keys = self._keys(sample, cond)
        answers: dict[Key, float | Failure] = {}
        row: dict[Key, int] = {}
        for i, key in enumerate(keys):
            row.setdefault(key, i)
        begun = [key for key in ahead if key in row]
        while missing := [key for key in row if key not in answers]:
            known, mine = ({}, begun) if begun else self._claim(missing)
            answers |= known
            begun = []
            if mine:
                index = torch.tensor([row[key] for key in mine], device=sample.device)
                numbers = [self.asked + row[key] for key in mine]
                answers |= self._paid(mine, sample[index], take(cond, index), numbers)
            elif len(known) < len(missing):
                time.sleep(POLL)  # another process asks for the rest
        self.asked += len(keys)
        if isinstance(self.reward, Numbered):  # also of what it was not asked
            self.reward.asked = self.asked
        return [answers[key] for key in keys]

    def prefetch(self, sample: Sample, cond: Cond) -> None:
        """Begins with what no ledger knows, where the reward can; answers are written down as they come."""
        if not isinstance(self.reward, Prefetching):
            return
        keys, first = self._keys(sample, cond), self.asked + self._looked
        self._looked += len(keys)
        row = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._ahead}
        _, mine = self._claim(sorted(row, key=lambda key: row[key]))
        if not mine:
            return
        index = torch.tensor([row[key] for key in mine], device=sample.device)
        texts = self._spell(sample[index]) if self._spell is not None else [""] * len(mine)
        self._ahead |= dict(zip(mine, texts, strict=True))
        if isinstance(self.reward, Streaming):
            self._tell(self.reward, list(self._ahead), list(self._ahead.values()))
        if isinstance(self.reward, Numbered):
            self.reward.numbers = [first + row[key] for key in mine]
        self.reward.prefetch(sample[index], take(cond, index))

    def state_dict(self) -> dict[str, Any]:
        own = learner_of(self.reward)
        return {"asked": self.asked, "reward": None if own is None else own.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.asked = state["asked"]
        own = learner_of(self.reward)
        if own is not None:
            own.load_state_dict(state["reward"])

    def _keys(self, sample: Sample, cond: Cond) -> list[Key]:
        first = self.asked + self._looked
        asks = [f"{self.run}#{first + row}" if self.noisy else "" for row in range(len(sample))]
        pairs = zip(sample_keys(sample, cond), asks, strict=True)
        return [(self.__name__, self.version, sample, ask) for sample, ask in pairs]

    def _claim(self, keys: Sequence[Key]) -> tuple[dict[Key, float], list[Key]]:
        """The answers that are known, and the keys that are now ours to ask."""
        known: dict[Key, float] = {}
        mine: list[Key] = []
        me, now = owner(os.getpid()), time.time()
        with self.ledger.writing() as db:
            for key in keys:
                if found := db.execute(f"SELECT number FROM answer {_WHERE}", key).fetchone():
                    known[key] = found[0]
                    continue
                claim = db.execute(f"SELECT owner, at FROM claim {_WHERE}", key).fetchone()
                if claim is None or claim[0] == me or _is_void(*claim):
                    db.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?, ?, ?, ?)", (*key, me, now))
                    mine.append(key)
        return known, mine

    def _paid(
        self, keys: Sequence[Key], sample: Sample, cond: Cond, numbers: Sequence[int]
    ) -> dict[Key, float | Failure]:
        """Asks the reward, and writes down what it says: at once where it says each number by itself.

        Args:
            numbers: Of the samples since the start of the run: draws do not depend on what is known.
        """
        texts = self._spell(sample) if self._spell is not None else [""] * len(keys)
        if isinstance(self.reward, Streaming):
            self._tell(self.reward, keys, texts)
        if isinstance(self.reward, Numbered):
            self.reward.numbers = numbers
        items: list[float | Failure] = []
        try:
            items = _items(self.reward(sample, cond), len(keys), sample.device)
        finally:
            self._record(keys, items, texts)
        return dict(zip(keys, items, strict=True))

    def _tell(self, reward: Streaming, keys: Sequence[Key], texts: Sequence[str]) -> None:
        """Has a reward's numbers written down as it says them."""
        reward.on_result = lambda row, number: self._record([keys[row]], [number], [texts[row]])

    def _record(self, keys: Sequence[Key], items: Sequence[float | Failure], texts: Sequence[str]) -> None:
        """Writes down answers and failures, and gives back the claims of all keys."""
        now = time.time()
        with self.ledger.writing() as db:
            for key, item, text in zip(keys, items, texts, strict=False):
                if isinstance(item, Failure):
                    db.execute("INSERT INTO failure VALUES (?, ?, ?, ?, ?)", (*key[:3], item.reason, now))
                else:
                    row = (*key, item, text, now)
                    db.execute("INSERT OR IGNORE INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            db.executemany(f"DELETE FROM claim {_WHERE}", keys)


def _items(answer: Any, count: int, device: torch.device) -> list[float | Failure]:
    """An answer as one number or failure per sample.

    Raises:
        ValueError: If it is not one number per sample.
    """
    numbers = numbers_of(answer, device)
    if numbers is None or numbers.shape != (count,):
        what = kind_of(answer) if numbers is None else f"shape {tuple(numbers.shape)}"
        raise ValueError(f"returned {what} instead of one number for each of {count} samples")
    listed = answer if isinstance(answer, list | tuple) else [0.0] * count
    return [item_of(number, said) for number, said in zip(numbers.tolist(), listed, strict=True)]


def owner(process: int) -> str:
    """What tells a process from every other one: machine, number, and when it began if that can be known."""
    try:
        began = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        began = ""
    return f"{socket.gethostname()} {process} {began}"


def _is_void(claimed_by: str, at: float) -> bool:
    """Whether who claimed a sample is gone."""
    machine, process, _ = claimed_by.rsplit(" ", 2)
    if machine != socket.gethostname():
        return time.time() - at > STALE
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return owner(int(process)) != claimed_by
