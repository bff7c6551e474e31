"""Where data sets lie on this machine, and how their files are read."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from difftilt.data.read import UnreadableError, read_cells

VARIABLE = "DIFFTILT_DATA"


def root() -> Path:
    """The folder of all data sets: $DIFFTILT_DATA, or ~/.cache/difftilt/data."""
    return Path(os.environ.get(VARIABLE) or cache(VARIABLE) / "data")


def cache(variable: str) -> Path:
    """~/.cache/difftilt.

    Args:
        variable: Of the environment, that names another folder; for the message.

    Raises:
        ValueError: If the user has no home.
    """
    try:
        return Path.home() / ".cache" / "difftilt"
    except RuntimeError:
        raise ValueError(f"this user has no home folder; set {variable} to a folder of yours") from None


def locate(name: str, file: str) -> Path:
    """A file of a data set.

    Raises:
        ValueError: If it is not on this machine, with how to get it.
    """
    path = root() / name / file
    if not path.is_file():
        raise ValueError(
            f"the data set {name} is not on this machine ({path} is missing): get it with difftilt data fetch"
            f" {name}, or with difftilt data import {name} PATH from files you have"
        )
    return path


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors about a file's contents begin with its path."""
    try:
        yield
    except ValueError as error:
        named = str(error).startswith(str(path))
        raise UnreadableError(str(error) if named else f"{path}: {error}") from None


def read_table(path: Path, wanted: Sequence[str]) -> list[list[str]]:
    """The wanted columns of a table with a header, one list of cells each.

    Cells are separated by what the header has most of: commas, semicolons or tabs.

    Args:
        wanted: Names of columns; one that stands twice is found twice.

    Raises:
        ValueError: If a column or all rows are missing, or for the first row with too few or many cells.
    """
    lines = read_cells(path, ",;\t")
    header = lines[0] if lines else []
    places: list[int] = []
    for name in wanted:
        start = 1 + max((place for place in places if header[place] == name), default=-1)
        if name not in header[start:]:
            raise ValueError(
                f"there is no column {name}: the header is {','.join(header)[:80]!r}, but a table with"
                f" the columns {', '.join(dict.fromkeys(wanted))} is expected"
            )
        places.append(header.index(name, start))
    columns: list[list[str]] = [[] for _ in wanted]
    for row, cells in enumerate(lines[1:], 2):
        if len(cells) != len(header):
            raise ValueError(f"row {row} has {len(cells)} cells, but the header has {len(header)}")
        for column, place in zip(columns, places, strict=True):
            column.append(cells[place])
    if not columns[0]:
        raise ValueError("there are no rows below the header")
    return columns


def numbers(cells: Sequence[str], name: str, least: float = -math.inf) -> list[float]:
    """A column of a table as numbers.

    Raises:
        ValueError: For the first row below the header that holds no finite number, or one that is too low.
    """
    found = []
    for row, cell in enumerate(cells, 2):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least:
            bound = f" of at least {least:g}" if least > -math.inf else ""
            raise ValueError(f"row {row} has the {name} {cell!r}, but a finite number{bound} is expected")
        found.append(value)
    return found
