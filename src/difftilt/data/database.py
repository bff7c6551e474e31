"""One SQLite file that several processes share: transactions are seen whole or not at all."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Database:
    """The tables in a file.

    Args:
        path: Made if it is missing.
        tables: SQL that makes the tables where they are missing.
    """

    def __init__(self, path: Path, tables: str):
        self.path, self._tables = path, tables
        self._open: tuple[int, sqlite3.Connection] | None = None  # of a process, for none survives a fork

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction.

        Raises:
            sqlite3.Error: If the file is no database, or the disk refuses.
        """
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def close(self) -> None:
        """Leaves all that was written in the one file, to be copied; the next use opens it again."""
        if self._open is not None and self._open[0] == os.getpid():
            self._open[1].close()
        self._open = None

    def _connection(self) -> sqlite3.Connection:
        if self._open is None or self._open[0] != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists() and not self.path.is_file():
                raise sqlite3.OperationalError("it is no file")
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")  # only a power cut loses what was written last
            connection.executescript(self._tables)
            self._open = os.getpid(), connection
        return self._open[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_tables": self._tables, "_open": None}
