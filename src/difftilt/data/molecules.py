"""Tables of molecules as people have them: where SMILES stand, what was changed, what is no molecule."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import track

from difftilt.data.assay import Assay, BadRows, Faults, averages
from difftilt.data.chemistry import NoMoleculeError, canonical, largest, parse
from difftilt.data.columns import called, cell_of, score_column
from difftilt.data.store import naming
from difftilt.data.tables import Table, has_decimal_commas, number_of, read_any_table

NAMES = ("smiles", "canonical_smiles", "isomeric_smiles", "smile", "smi", "structure", "molecule", "mol")
SPLITS = ("split", "set", "subset", "partition", "fold")
TRIED = 50  # rows that tell which column holds molecules


@dataclass(frozen=True)
class Molecules:
    """Different molecules as RDKit writes them.

    Args:
        smiles: Those to learn from.
        held_out: Those that the file keeps for a test; none if it does not say.
        understood: What was found in the file, in words, line by line.
    """

    smiles: list[str]
    held_out: list[str]
    understood: tuple[str, ...]


def read_molecules(
    path: Path, column: str | None = None, bad_rows: BadRows = "stop", stereo: bool = False
) -> Molecules:
    """The molecules of a table or of a list of SMILES, packed or not.

    Of salts and mixtures the largest part is kept. Rows that a column such as SPLIT calls test are held out.

    Args:
        column: Of the SMILES, by its name or number; found if not given.
        bad_rows: `stop` refuses a file with rows that are no molecule, and tells of all; `drop` leaves them.
        stereo: Keep what is known of stereochemistry.

    Raises:
        UnreadableError: In one sentence that names the file and says what to do.
    """
    with naming(path):
        table = read_any_table(path)
        header, body, place = _column(table, column)
        splits = [number for number, name in enumerate(header) if name.lower() in SPLITS]
        parts: dict[str, bool] = {}  # whether each molecule is held out
        faults, salts, stereos = Faults(), 0, 0
        for row, line in track(list(zip(body.rows, body.lines, strict=True)), "molecules", transient=True):
            try:
                text, several, spatial = _clean(cell_of(row, place), stereo)
            except NoMoleculeError as error:
                faults.add(_kind(error), line, cell_of(row, place))
                continue
            held_out = any(cell_of(row, split).lower().startswith("test") for split in splits)
            parts[text] = parts.get(text, False) or held_out
            salts, stereos = salts + several, stereos + spatial
        told = faults.left_out(len(body.rows), bad_rows)
        if not parts:
            raise ValueError(f"{told or 'there are no rows'}; name another column with --column")
        said = [f"{path}: {table.kind}, {len(body.rows):,} rows", f"SMILES: {called(header, place)}"]
        said += [f"held out: rows that {called(header, splits[0])} calls test"] if splits else []
        said += [f"left out: {told}"] if told else []
        said += [f"salts and mixtures of which the largest part is kept: {salts:,}"]
        said += [f"stereochemistry: {'kept' if stereo else 'taken away'}, of {stereos:,} rows"]
        said += [f"{len(parts):,} different molecules"]
        held = [text for text, out in parts.items() if out]
        return Molecules([text for text, out in parts.items() if not out], held, tuple(said))


def names_molecules(path: Path) -> bool:
    """Whether a table has a column that is called SMILES, or something with it."""
    with naming(path):
        return any("smiles" in cell.lower() for cell in read_any_table(path).rows[0])


def read_molecule_assay(
    path: Path, column: str | None = None, score: str | None = None, bad_rows: BadRows = "stop"
) -> Assay:
    """The molecules of a table, each once as RDKit writes it, and the means of what was measured of them.

    Of salts and mixtures the largest part is kept; stereochemistry is taken away.

    Args:
        column: Of the SMILES, by its name or number; found if not given.
        score: As for `read_assay`, like the next one.

    Raises:
        UnreadableError: In one sentence that names the file and says what to do.
    """
    with naming(path):
        table = read_any_table(path)
        header, body, place = _column(table, column)
        scored = score_column(header, body, score, place)
        numbers = [cell_of(row, scored) if scored is not None else "" for row in body.rows]
        comma, faults, found = has_decimal_commas(numbers), Faults(), dict[str, list[float]]()
        for row, line, number in zip(body.rows, body.lines, numbers, strict=True):
            value = number_of(number, comma) if number else math.nan
            try:
                text = cleaned_smiles(cell_of(row, place))
            except NoMoleculeError as error:
                faults.add(_kind(error), line, cell_of(row, place))
                continue
            if value is None or math.isinf(value):
                faults.add("with a score that is no finite number", line, number)
            else:
                found.setdefault(text, []).append(value)
        told = faults.left_out(len(body.rows), bad_rows)
        if not found:
            raise ValueError(f"{told or 'there are no rows'}; name other columns")
        measured = averages(found)
        said = [f"{path}: {table.kind}, {len(body.rows):,} rows", f"SMILES: {called(header, place)}"]
        said += ["scores: none" if scored is None else f"scores: {called(header, scored)}"]
        said += [f"left out: {told}"] if told else []
        said += [
            f"{len(found):,} different molecules, without stereochemistry, {int((measured[2] > 0).sum()):,}"
            f" with a score, of which {int((measured[2] > 1).sum()):,} are means of several"
        ]
        return Assay(list(found), (), *measured, tuple(said))


def cleaned_smiles(cell: str) -> str:
    """The largest part of a molecule as RDKit writes it, without stereochemistry.

    Raises:
        NoMoleculeError: If it is none.
    """
    return _clean(cell, stereo=False)[0]


def _clean(cell: str, stereo: bool) -> tuple[str, bool, bool]:
    """A molecule as it is learned, and whether it was a mixture, and had stereochemistry."""
    found = parse(cell)
    several = "." in cell
    found = largest(found) if several else found
    text = canonical(found, stereo)
    return text, several, any(sign in cell for sign in "@/\\")


def _kind(error: NoMoleculeError) -> str:
    """The fault without what differs from one molecule to the next."""
    return f"whose SMILES {str(error).partition(' (')[0]}"


def _column(table: Table, asked: str | None) -> tuple[list[str], Table, int]:
    """The names of the columns, the rows below them, and the place of the SMILES."""
    first = table.rows[0]
    plain = [cell.lower().replace(" ", "_") for cell in first]
    numbers = [str(number) for number in range(1, max(map(len, table.rows[:TRIED])) + 1)]
    below = Table(table.rows[1:], table.lines[1:], table.kind)
    if asked is not None and asked.lower() in plain:
        return first, below, plain.index(asked.lower())
    if asked is None and (named := [plain.index(name) for name in NAMES if name in plain]):
        return first, below, named[0]
    readable = [
        _share([cell_of(row, place) for row in table.rows[1 : TRIED + 1]]) for place in range(len(numbers))
    ]
    place = numbers.index(asked) if asked in numbers else readable.index(max(readable))
    if asked is not None and asked not in numbers:
        raise ValueError(f"no column is called {asked}: the columns are {', '.join(first)[:200]}")
    is_header = not _is_molecule(cell_of(first, place)) and readable[place] > 0.5
    if asked is None and readable[place] <= 0.5 and not _is_molecule(cell_of(first, place)):
        raise ValueError(
            f"no column holds SMILES that can be read ({', '.join(first)[:80]}): name the right one with"
            " --column"
        )
    return (first, below, place) if is_header else (numbers, table, place)


def _share(cells: Sequence[str]) -> float:
    """The share of cells that are molecules."""
    return sum(map(_is_molecule, cells)) / max(len(cells), 1)


def _is_molecule(cell: Any) -> bool:
    try:
        parse(cell)
    except NoMoleculeError:
        return False
    return not cell.isdigit()
