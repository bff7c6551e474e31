"""Which column of a table holds sequences, and which their scores: by name, and else by what it holds."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from difftilt.data.read import read_text
from difftilt.data.store import naming
from difftilt.data.tables import Table, number_of
from difftilt.data.vocabulary import DNA, PROTEIN, RNA, check_letters, split

ALPHABETS: Mapping[str, str] = {"dna": DNA, "rna": RNA, "protein": PROTEIN}
SEQUENCE_NAMES = ("mutated_sequence", "sequence", "sequences", "seq", "seqs", "utr", "oligo", "peptide")
SCORE_NAMES = (
    *("dms_score", "score", "scores", "fitness", "log2fc", "activity", "expression", "rl", "mrl"),
    *("enrichment", "measurement", "value", "label", "target", "y"),
)
NUCLEIC = set("ACGTUN")  # N only tells the kind of a column
LABELS = {"train", "test", "val", "valid", "validation", "dev"}  # words in letters of amino acids
MOST, DISTINCT = 0.5, 0.25  # shares of a column's cells that are alike in kind, and that differ


def letters_of(alphabet: str) -> tuple[str, ...]:
    """The tokens of an alphabet by name, or of a file with blanks or ends of lines between them."""
    if alphabet in ALPHABETS:
        return tuple(ALPHABETS[alphabet])
    path = Path(alphabet)
    if not path.is_file():
        raise ValueError(f"the alphabets are {', '.join(ALPHABETS)}, or a file of tokens, but got {alphabet}")
    letters = tuple(read_text(path).split())
    with naming(path):
        check_letters(letters)
    return letters


def cleaned(text: str, letters: Sequence[str]) -> str:
    """A sequence without blanks, in capitals if the letters are those of DNA, RNA or proteins.

    T and U are the same letter of nucleic acids, written as the alphabet has it.
    """
    text = "".join(text.split())
    known = "".join(letters)
    if known not in ALPHABETS.values():
        return text
    text = text.upper()
    return text.replace("U", "T") if known == DNA else text.replace("T", "U") if known == RNA else text


def header_of(table: Table, named: Sequence[str]) -> tuple[list[str], Table]:
    """The names of the columns, their numbers if there is no header, and the rows below."""
    first, rest = table.rows[0], Table(table.rows[1:], table.lines[1:], table.kind)
    known = {*SEQUENCE_NAMES, *SCORE_NAMES, *map(_plain, named)}
    is_header = table.named or any(_plain(cell) in known for cell in first)
    if not is_header and rest.rows:
        for place, cell in enumerate(first):
            column = [cell_of(row, place) for row in rest.rows if cell_of(row, place)]
            lengths = {len(other) for other in column}
            is_header |= bool(column) and (
                (_share(_is_number(other) for other in column) > MOST and not _is_number(cell))
                or (
                    _looks_like_sequences(column)
                    and not (_kind(cell) and (len(lengths) > 1 or len(cell) in lengths))
                )
            )
    if is_header:
        return first, rest
    return [str(number) for number in range(1, len(first) + 1)], table


def sequence_column(header: list[str], body: Table, asked: str | None, letters: Sequence[str] | None) -> int:
    """The column of the sequences."""
    if asked is not None:
        return _named(header, asked)
    by_name = _by_name(header, SEQUENCE_NAMES)
    if by_name is not None:
        return by_name
    columns = [[cell_of(row, place) for row in body.rows] for place in range(len(header))]
    fits = [place for place, cells in enumerate(columns) if _looks_like_sequences(cells, letters)]
    if len(fits) == 1:
        return fits[0]
    names = ", ".join(header[place] for place in fits) or ", ".join(body.rows[0])[:80]
    problem = "more than one column holds" if fits else "no column holds"
    kinds = "of its tokens" if letters else "of DNA, RNA or protein"
    raise ValueError(
        f"{problem} sequences {kinds} ({names}): name the right one with --sequence, and tokens of"
        " another kind with --alphabet FILE"
    )


def score_column(header: list[str], body: Table, asked: str | None, sequence: int) -> int | None:
    """The column of the scores, or None if no column holds numbers."""
    if asked is not None:
        return _named(header, asked)
    by_name = _by_name(header, SCORE_NAMES)
    if by_name is not None:
        return by_name
    numeric = []
    for place in range(len(header)):
        cells = [cell_of(row, place) for row in body.rows]
        held = [cell for cell in cells if cell]
        counts = [str(number) for start in (0, 1) for number in range(start, len(cells) + start)]
        counting = cells in (counts[: len(cells)], counts[len(cells) :])
        if place != sequence and held and _share(map(_is_number, held)) > MOST and not counting:
            numeric.append(place)
    if len(numeric) > 1:
        names = ", ".join(header[place] for place in numeric)
        raise ValueError(f"several columns hold numbers ({names}): name the scores with --score")
    return numeric[0] if numeric else None


def letters_in(cells: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The kind of sequences in a column, and their letters."""
    held = [cell for cell in cells if cell]
    kinds = [_kind(cell) for cell in held]
    most = max(set(kinds), key=kinds.count) if kinds else ""
    if not most or kinds.count(most) <= MOST * len(kinds):
        odd = next(
            (cell for cell, kind in zip(held, kinds, strict=True) if not kind or most not in ("", kind)), ""
        )
        raise ValueError(
            f"sequences such as {odd[:40]!r} are not of DNA, RNA or protein: name a"
            " file of their tokens with --alphabet"
        )
    text = "".join(cells).upper()
    if most == "protein":
        return "protein", tuple(PROTEIN)
    return ("RNA", tuple(RNA)) if text.count("U") > text.count("T") else ("DNA", tuple(DNA))


def cell_of(row: Sequence[str], place: int) -> str:
    """A cell, empty where the row is too short."""
    return row[place] if place < len(row) else ""


def called(header: Sequence[str], place: int) -> str:
    """What messages call a column."""
    return f"column {header[place] or place + 1}"


def _plain(name: str) -> str:
    """A column's name without capitals, and with _ in the place of blanks and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _by_name(header: Sequence[str], names: Sequence[str]) -> int | None:
    """The column with the first of the names that there is."""
    plain = [_plain(name) for name in header]
    return next((plain.index(name) for name in names if name in plain), None)


def _named(header: Sequence[str], name: str) -> int:
    """The column of a name that was asked for."""
    places = [place for place, other in enumerate(header) if other == name]
    places = places or [place for place, other in enumerate(header) if _plain(other) == _plain(name)]
    if len(places) != 1:
        much = "no column is" if not places else f"{len(places)} columns are"
        raise ValueError(f"{much} called {name}: the columns are {', '.join(header)[:200]}")
    return places[0]


def _is_number(cell: str) -> bool:
    value = number_of(cell, comma=True)
    return value is not None and not math.isnan(value)


def _kind(cell: str) -> str:
    """What the letters of a cell are: `nucleic`, `protein`, or nothing that is known."""
    letters = set("".join(cell.split()).upper())
    if not letters:
        return ""
    return "nucleic" if letters <= NUCLEIC else "protein" if letters <= set(PROTEIN) else ""


def _looks_like_sequences(cells: Sequence[str], letters: Sequence[str] | None = None) -> bool:
    """Whether most cells are sequences, and not the same few words."""
    held = [cell for cell in cells if cell]
    if not held or len(set(held)) < DISTINCT * len(held) or any(cell.lower() in LABELS for cell in held):
        return False
    if letters:
        return _share(split(cleaned(cell, letters), letters) is not None for cell in held) > MOST
    return _share(len(cell) > 1 and bool(_kind(cell)) for cell in held) > MOST


def _share(holds: Iterable[bool]) -> float:
    found = list(holds)
    return sum(found) / max(len(found), 1)
