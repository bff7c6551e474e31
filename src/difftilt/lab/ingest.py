"""What comes back from the bench: a table of any making, matched to proposals by id or by sequence."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difftilt.data.assay import BadRows, Faults
from difftilt.data.columns import called, cell_of, header_of, score_column
from difftilt.data.read import read_bytes
from difftilt.data.store import naming
from difftilt.data.tables import Table, has_decimal_commas, number_of, read_any_table
from difftilt.lab.folder import Lab
from difftilt.lab.language import Language
from difftilt.lab.plate import HEAD
from difftilt.lab.records import Proposal
from difftilt.settings import Count

FAILED = {
    *("fail", "failed", "failure", "error", "x", "nd", "n.d.", "n.d", "no data", "inf", "-inf", "overflow"),
}
OURS = {*HEAD[:-1], "id"}  # columns of a plate's table that hold no results
Unknown = Literal["stop", "accept", "drop"]
Blank = Literal["failed", "pending"]


@dataclass(frozen=True)
class Results:
    """What a file says.

    Args:
        rows: Sequences and their measurements, None where a well failed; one row for each row of the file.
        understood: What was found in it, line by line.
    """

    rows: list[tuple[str, float | None]]
    understood: list[str]


@dataclass(frozen=True)
class Reading:
    """How to read a file of results.

    Args:
        sequence: Column of the sequences, by name or number; found if not given.
        score: Column of the measurements; found if not given.
        unknown: What to do if sequences were not proposed: `stop` and tell of them, `accept` them as further
            labels, or `drop` them.
        plate: Number of the plate, where rows have wells and neither ids nor sequences; it may be left out
            where there is one plate only.
        blank: Whether a cell without a measurement is a well that `failed`, or is still `pending`.
        bad_rows: What to do if rows cannot be used: stop and tell of all, or drop them.
        replace: These measurements take the place of earlier ones of the same sequences.
    """

    sequence: str | None = None
    score: str | None = None
    unknown: Unknown = "stop"
    plate: Count | None = None
    blank: Blank = "failed"
    bad_rows: BadRows = "stop"
    replace: bool = False


def ingest(lab: Lab, path: Path, reading: Reading) -> list[str]:
    """Writes down what a file says, and returns what that was, in sentences. The same file changes nothing.

    Raises:
        UnreadableError: Before anything is changed, in one sentence that names the file.
    """
    digest = digest_of(path)
    if known := lab.source(digest):
        return [f"{path} was ingested on {known[1]} as {known[0]}, so nothing was done"]
    with naming(path):
        found = read_results(lab, path, lab.language, reading)
    before = {} if reading.replace else lab.results()
    rows = fresh(found.rows, before)
    lab.ingest(digest, path.name, rows, reading.replace)
    failed, repeated = sum(value is None for _, value in rows), len(found.rows) - len(rows)
    said = (
        f"{len(rows) - failed} measurements of {len({text for text, x in rows if x is not None})} sequences"
    )
    said += f", {failed} failed wells" * bool(failed)
    said += f", and {repeated} that were known already" * bool(repeated)
    open_ = len(pending(lab))
    return [*found.understood, f"ingested: {said}; {open_} proposed sequences are pending"]


def digest_of(path: Path) -> str:
    """What tells a file from every other one."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def pending(lab: Lab) -> list[str]:
    """What was proposed, and of which nothing came back."""
    known = lab.results()
    return [each.text for each in lab.proposals() if each.text not in known]


def fresh(
    rows: Sequence[tuple[str, float | None]], before: dict[str, list[float | None]]
) -> list[tuple[str, float | None]]:
    """The rows without those that were known: an export that grows says them again."""
    left = Counter((text, value) for text, values in before.items() for value in values)
    kept = []
    for row in rows:
        if left[row]:
            left[row] -= 1
        else:
            kept.append(row)
    return kept


def read_results(lab: Lab, path: Path, language: Language, reading: Reading) -> Results:
    """The rows of a file that can be used."""
    table = read_any_table(path)
    asked = [name for name in (reading.sequence, reading.score) if name]
    header, body = header_of(table, [*asked, *HEAD])
    proposals = lab.proposals()
    texts = {each.id.lower(): each.text for each in proposals}
    proposed, known = set(texts.values()), {*texts.values(), *lab.results()}
    columns = [[cell_of(row, place) for row in body.rows] for place in range(len(header))]
    ids = _most(columns, lambda cell: cell.lower() in texts)
    place = _most(columns, lambda cell: language.cleaned(cell) in known)
    if reading.sequence is None and ids is None and place is None:
        texts = _in_wells(proposals, reading.plate)
        ids = _most(columns, lambda cell: cell.lower() in texts)
    if reading.sequence is not None or (ids is None and place is None):
        place = language.column(header, body, reading.sequence)
    scored = _results_column(header, body, columns, reading.score, [ids, place])
    numbers = [cell.strip() for cell in columns[scored]]
    comma = has_decimal_commas(numbers)
    rows: list[tuple[str, float | None]] = []
    faults, strange = Faults(), Faults()
    for row, (cells, line) in enumerate(zip(body.rows, body.lines, strict=True)):
        key = "" if ids is None else cell_of(cells, ids).lower()
        word = "" if place is None else language.cleaned(cell_of(cells, place))
        text = texts.get(key, word)
        value = number_of(numbers[row], comma)
        failed = numbers[row].lower() in FAILED or value is None or not math.isfinite(value)
        if wrong := _wrong(text, word, key in texts, language):
            faults.add(wrong, line, word or key)
        elif value is None and numbers[row].lower() not in FAILED:
            faults.add("with a result that is no number, nor a failure such as fail", line, numbers[row])
        elif text not in known and reading.unknown != "accept":
            strange.add("of sequences that this lab did not propose", line, text)
        elif not (failed and reading.blank == "pending" and not numbers[row]):
            rows.append((text, None if failed else value))
    said = _told(faults, strange, len(body.rows), reading)
    if not any(text in proposed for text, _ in rows) and reading.unknown != "accept":
        raise ValueError("none of its rows is of a sequence that this lab proposed; was another file meant?")
    by = [called(header, column) for column in (ids, place) if column is not None]
    kind = f"{path}: {table.kind}, {len(body.rows):,} rows"
    return Results(rows, [kind, f"matched by {' and '.join(by)}; results: {called(header, scored)}", *said])


def _in_wells(proposals: Sequence[Proposal], plate: int | None) -> dict[str, str]:
    """The sequences of a plate by well, written A01 or A1; none if it is not clear which plate is meant."""
    plates = {each.plate for each in proposals} if plate is None else {plate}
    own = [each for each in proposals if len(plates) == 1 and each.plate in plates]
    return {name.lower(): p.text for p in own for name in (p.well, p.well.replace("0", "", p.well[1] == "0"))}


def _wrong(text: str, word: str, has_id: bool, language: Language) -> str:
    """What is wrong with the sequence of a row; empty if nothing is."""
    if not text:
        return "without an id or a sequence of this lab"
    if has_id and word and word != text:
        return "with an id and a sequence that do not belong together"
    if not language.writes(text):
        return "of sequences that the model cannot write"
    return ""


def _told(faults: Faults, strange: Faults, rows: int, reading: Reading) -> list[str]:
    """What was left out; raises if that is not to be."""
    said = [faults.left_out(rows, reading.bad_rows), strange.told(rows) if strange.found else ""]
    if said[1] and reading.unknown == "stop":
        raise ValueError(
            f"{said[1]}. Take them as further labels with --unknown accept, or use --unknown drop"
        )
    return [f"left out: {told}" for told in said if told]


def _most(columns: Sequence[Sequence[str]], fits: Callable[[str], bool]) -> int | None:
    """The column of which most cells fit; None if none does."""
    counts = [sum(map(fits, cells)) for cells in columns]
    return counts.index(max(counts)) if any(counts) else None


def _results_column(
    header: list[str],
    body: Table,
    columns: Sequence[Sequence[str]],
    asked: str | None,
    others: Sequence[int | None],
) -> int:
    """The column of the measurements: none of ours, and not an empty one."""
    if asked is not None:
        found = score_column(header, body, asked, -1)
    else:
        free = [
            place
            for place, cells in enumerate(columns)
            if place not in others and header[place].strip().lower() not in OURS and any(cells)
        ]
        some = Table([[cell_of(row, place) for place in free] for row in body.rows], body.lines, body.kind)
        inner = score_column([header[place] for place in free], some, None, -1)
        found = None if inner is None else free[inner]
    if found is None:
        raise ValueError("no column holds results: fill in the column measurement, or name one with --score")
    return found
