"""A lab in the loop: what was measured, what was proposed and what may still be spent, in one file.

A round of proposals and the results of a file are one transaction each, so that a kill at any moment leaves
both out or has both done. Tables and FASTA for the bench are written from what the file says.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from difftilt.data.assay import Assay
from difftilt.data.database import Database
from difftilt.data.lock import locked
from difftilt.data.owned import contents
from difftilt.data.read import UnreadableError, parse_json
from difftilt.data.typed import misfit
from difftilt.lab.language import Language, Saved, language_of
from difftilt.lab.records import COLUMNS, Measured, Plan, Proposal, Record, Round
from difftilt.objective import standard_error

FILE = "lab.db"
_TABLES = """
CREATE TABLE IF NOT EXISTS setting (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS source (digest TEXT PRIMARY KEY, name TEXT NOT NULL, at TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS round (
    number INTEGER PRIMARY KEY, rule TEXT NOT NULL, at TEXT NOT NULL, notes TEXT NOT NULL,
    written INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE TABLE IF NOT EXISTS proposal (
    id TEXT PRIMARY KEY, round INTEGER NOT NULL REFERENCES round, text TEXT NOT NULL UNIQUE,
    predicted REAL, std REAL, to_labelled INTEGER, to_proposed INTEGER, rule TEXT NOT NULL,
    plate INTEGER NOT NULL, well TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS result (
    text TEXT NOT NULL, value REAL, source TEXT NOT NULL REFERENCES source) STRICT;
CREATE INDEX IF NOT EXISTS result_of ON result (text);
"""


class Lab:
    """The folder of a lab. Use it within `held`, which keeps others out.

    Raises:
        UnreadableError: When it is used, if the folder holds no lab.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._database = Database(folder / FILE, _TABLES)

    @contextmanager
    def held(self) -> Iterator["Lab"]:
        """Keeps other processes from the lab while the block runs."""
        if not (self.folder / FILE).is_file():
            raise UnreadableError(
                f"{self.folder} holds no lab; begin one with difftilt lab init RECIPE --data TABLE --budget N"
                f" --out {self.folder}"
            )
        with locked(self.folder):
            try:
                if "plan" not in self._settings():
                    raise UnreadableError(f"{self.folder} was begun and not finished; run lab init again")
                yield self
            finally:
                self._database.close()

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Keeps a folder for a new lab while the block runs.

        Raises:
            ValueError: If the folder holds a lab already, or something else.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is no folder; name another one with --out")
        with locked(self.folder):
            try:
                if (self.folder / FILE).exists() and "plan" in self._settings():
                    raise ValueError(
                        f"{self.folder} holds a lab already; go on with difftilt lab propose {self.folder},"
                        " or name another folder with --out"
                    )
                own = {FILE, f"{FILE}-wal", f"{FILE}-shm"}
                if held := contents(self.folder) - own:
                    raise ValueError(f"{self.folder} holds {min(held)} already; name a new folder with --out")
                yield
            finally:
                self._database.close()

    def begin(
        self,
        plan: Plan,
        record: Mapping[str, Any],
        language: Language,
        start: Assay | None = None,
        digest: str = "",
    ) -> None:
        """Writes down what a lab is made of, and what is measured already."""
        with self._writing() as db:
            settings = {"plan": asdict(plan), "record": record, "vocabulary": language.saved()}
            for name, value in settings.items():
                db.execute("INSERT INTO setting VALUES (?, ?)", (name, json.dumps(value)))
            if start is not None:
                _source(db, digest, "start")
                for text, mean, count in zip(start.sequences, start.score, start.count, strict=True):
                    if count:
                        db.execute("INSERT INTO result VALUES (?, ?, ?)", (text, mean.item(), digest))

    @property
    def plan(self) -> Plan:
        found = self._setting("plan", dict[str, Any])
        try:
            return Plan(**found)
        except (TypeError, ValueError) as error:
            raise self._damaged(str(error)) from None

    @property
    def record(self) -> dict[str, Any]:
        """What the model is made of; see `Record`."""
        return self._setting("record", Record)

    @property
    def language(self) -> Language:
        """What its texts are."""
        found = self._setting("vocabulary", Saved)
        try:
            return language_of(found, self.plan.both_strands)
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def allow(self, budget: int) -> None:
        """Sets how many sequences may be proposed in all."""
        plan = json.dumps(asdict(self.plan) | {"budget": budget})
        with self._writing() as db:
            db.execute("UPDATE setting SET value = ? WHERE name = 'plan'", (plan,))

    def rounds(self) -> list[Round]:
        rows = self._rows("SELECT number, rule, at, notes, written FROM round ORDER BY number")
        return [
            Round(number, rule, at, parse_json(notes, self.folder / FILE), bool(done))
            for number, rule, at, notes, done in rows
        ]

    def proposals(self) -> list[Proposal]:
        """All of them, in their order."""
        found = self._rows(f"SELECT {', '.join(COLUMNS)} FROM proposal ORDER BY round, plate, well")
        return [Proposal(*row) for row in found]

    def propose(self, rule: str, notes: Sequence[str], proposals: Sequence[Proposal]) -> None:
        """Writes down a round, whose files are still to be written.

        Raises:
            ValueError: If that is more than may be spent; nothing is changed.
        """
        budget = self.plan.budget
        with self._writing() as db:
            (spent,) = db.execute("SELECT COUNT(*) FROM proposal").fetchone()
            if spent + len(proposals) > budget:
                raise ValueError(f"{len(proposals)} sequences are more than the budget leaves")
            row = (proposals[0].round, rule, _now(), json.dumps(list(notes)))
            db.execute("INSERT INTO round (number, rule, at, notes) VALUES (?, ?, ?, ?)", row)
            marks = ", ".join("?" * len(COLUMNS))
            rows = [tuple(asdict(each).values()) for each in proposals]
            db.executemany(f"INSERT INTO proposal VALUES ({marks})", rows)

    def wrote(self, number: int) -> None:
        """Remembers that the files of a round are written."""
        with self._writing() as db:
            db.execute("UPDATE round SET written = 1 WHERE number = ?", (number,))

    def source(self, digest: str) -> tuple[str, str] | None:
        """The name of a file that was ingested, and when; None if it was not."""
        rows = self._rows("SELECT name, at FROM source WHERE digest = ?", digest)
        return rows[0] if rows else None

    def results(self) -> dict[str, list[float | None]]:
        """What came back, by sequence: measurements, and None for each well that failed."""
        found: dict[str, list[float | None]] = {}
        for text, value in self._rows("SELECT text, value FROM result ORDER BY rowid"):
            found.setdefault(text, []).append(value)
        return found

    def ingest(
        self, digest: str, name: str, results: Sequence[tuple[str, float | None]], replace: bool = False
    ) -> None:
        """Writes down what a file says of sequences.

        Args:
            results: Sequences and their measurements, None for wells that failed.
            replace: In the place of what was known of these sequences.
        """
        with self._writing() as db:
            _source(db, digest, name)
            if replace:
                db.executemany("DELETE FROM result WHERE text = ?", [(text,) for text, _ in results])
            rows = [(text, value, digest) for text, value in results]
            db.executemany("INSERT INTO result VALUES (?, ?, ?)", rows)

    def measured(self) -> Measured:
        """The sequences of which a measurement succeeded."""
        known = {text: [x for x in found if x is not None] for text, found in self.results().items()}
        known = {text: torch.tensor(found, dtype=torch.float64) for text, found in known.items() if found}
        mean = [found.mean().item() for found in known.values()]
        error = [standard_error(found).item() for found in known.values()]
        mean, error = (torch.tensor(each, dtype=torch.float64) for each in (mean, error))
        return Measured(list(known), mean, error, [len(found) for found in known.values()])

    def _settings(self) -> dict[str, str]:
        return dict(self._rows("SELECT name, value FROM setting"))

    def _setting(self, name: str, hint: Any) -> Any:
        value = parse_json(self._settings().get(name, "null"), self.folder / FILE)
        if wrong := misfit(value, hint):
            raise self._damaged(wrong)
        return value

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._writing() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database.writing() as connection:
                yield connection
        except sqlite3.Error as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, why: str) -> UnreadableError:
        return UnreadableError(
            f"{self.folder / FILE} cannot be used ({why}); bring it back from a copy, or see that the disk"
            " has room"
        )


def _source(db: sqlite3.Connection, digest: str, name: str) -> None:
    db.execute("INSERT INTO source VALUES (?, ?, ?)", (digest, name, _now()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
