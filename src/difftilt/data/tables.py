"""Tables as people have them: separated by anything, packed or not, as Excel writes them, or FASTA."""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from difftilt.data.read import UnreadableError, packed_text

SEPARATORS = {"\t": "tabs", ";": "semicolons", ",": "commas", "|": "bars", " ": "blanks"}
LOOKED_AT = 200  # rows that tell the separator
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "-", "."}
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
COMMA_NUMBER = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.IGNORECASE)
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


@dataclass(frozen=True)
class Table:
    """Rows of cells, all that is not blank.

    Args:
        rows: Cells without blanks around them; the first row may be a header.
        lines: The line of the file in which each row begins, from 1.
        kind: What the file is, in words.
        named: Whether the first row is a header for certain.
    """

    rows: list[list[str]]
    lines: list[int]
    kind: str
    named: bool = False


def read_any_table(path: Path) -> Table:
    """The rows of a file of FASTA, or of cells with commas, semicolons, tabs, bars or blanks between them.

    Blank rows are left out, and so are comments ahead of the header.

    Raises:
        UnreadableError: If it is no text, or empty.
    """
    text = packed_text(path).lstrip("\ufeff")
    if "\0" in text:
        raise UnreadableError(f"{path} holds no text, but a table or FASTA is expected: save it as CSV")
    if not text.strip():
        raise UnreadableError(f"{path} is empty, but a table or FASTA is expected")
    if text.lstrip().startswith(">"):
        return _fasta(text)
    separators = list(SEPARATORS)
    if stated := re.match(r"sep=(.)\r?\n", text):  # Excel's own line, which is no row
        separators, text = [stated[1]], "#\n" + text[stated.end() :]
    try:
        mark = max(separators, key=lambda one: _width(list(islice(_cells(text, one), LOOKED_AT))))
        found = list(_cells(text, mark))
    except csv.Error as error:
        raise UnreadableError(f"{path} is no table ({error}): save it as CSV") from None
    if not found:
        raise UnreadableError(f"{path} holds comments alone, but a table or FASTA is expected")
    lines, rows = zip(*found, strict=True)
    wide = max(map(len, rows)) > 1
    kind = f"a table with {SEPARATORS.get(mark, mark)} between its cells" if wide else "a list of lines"
    return Table(list(rows), list(lines), kind)


def number_of(cell: str, comma: bool = False) -> float | None:
    """The number in a cell, NaN where it is missing, or None if it holds something else.

    Args:
        comma: Whether a comma is the decimal mark.
    """
    if cell.lower() in MISSING:
        return float("nan")
    text = cell.replace(",", ".") if comma else cell
    return float(text) if NUMBER.fullmatch(text) else None


def has_decimal_commas(cells: Sequence[str]) -> bool:
    """Whether the numbers of a column have decimal commas.

    Raises:
        ValueError: If their commas may be decimal marks or separate thousands.
    """
    marked = [cell for cell in cells if COMMA_NUMBER.fullmatch(cell) or THOUSANDS.fullmatch(cell)]
    if not marked or any(NUMBER.fullmatch(cell) and "." in cell for cell in cells):
        return False
    if all(THOUSANDS.fullmatch(cell) for cell in marked):
        raise ValueError(
            f"a number such as {marked[0]} may have a decimal comma, or thousands: save the table with"
            " decimal points"
        )
    return True


def _cells(text: str, mark: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the line in which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=mark == " ")
    begun, first = 0, True  # first: no row has come yet, only comments
    for row in reader:
        line, begun = begun + 1, reader.line_num
        cells = [cell.strip() for cell in row]
        first = first and (not any(cells) or cells[0].startswith("#"))
        if any(cells) and not first:
            yield line, cells


def _width(rows: Sequence[tuple[int, list[str]]]) -> int:
    """How well a separator suits: the cells of the first row, or 1 if few others have as many."""
    widths = [len(cells) for _, cells in rows]
    return widths[0] if rows and widths.count(widths[0]) >= 0.7 * len(rows) else 1


def _fasta(text: str) -> Table:
    """FASTA as a table: names, sequences, and what headers say as `key=value`."""
    records: list[tuple[int, str, list[str]]] = []
    for number, line in enumerate(io.StringIO(text), 1):
        if line.startswith(">"):
            records.append((number, line[1:].strip(), []))
        elif records:
            records[-1][2].append("".join(line.split()))
    said = [dict(re.findall(r"([^\s=|;,]+)=([^\s|;,]+)", header)) for _, header, _ in records]
    keys = list(dict.fromkeys(key for pairs in said for key in pairs))
    rows = [["name", "sequence", *keys]]
    for (_, header, parts), pairs in zip(records, said, strict=True):
        rows.append([header.split()[0] if header else "", "".join(parts), *(pairs.get(k, "") for k in keys)])
    return Table(rows, [0, *(number for number, _, _ in records)], "FASTA", named=True)
