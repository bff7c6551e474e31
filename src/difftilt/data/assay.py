"""Assays: sequences of any length with what was measured of them, from whatever file they stand in.

Columns are found by their names, and else by what they hold. One pass over the file finds all rows that
cannot be used; measurements of one sequence are averaged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from difftilt.data.columns import (
    called,
    cell_of,
    cleaned,
    header_of,
    letters_in,
    letters_of,
    score_column,
    sequence_column,
)
from difftilt.data.store import naming
from difftilt.data.tables import Table, has_decimal_commas, number_of, read_any_table
from difftilt.data.vocabulary import DNA, RNA, Vocabulary, listed, split
from difftilt.shapes import Index, Some

BadRows = Literal["stop", "drop"]


@dataclass(frozen=True)
class Assay:
    """Distinct sequences and their scores.

    Args:
        sequences: Each once, in the order of the file, in capitals where letters are those of `ALPHABETS`.
        letters: The tokens that they are made of; none of molecules, which are SMILES.
        score: The mean of each one's measurements, in float64; NaN where there is none.
        error: Its standard error; NaN where there are fewer than two.
        count: How many measurements there are.
        understood: What was found in the file, in words, line by line.
    """

    sequences: list[str]
    letters: tuple[str, ...]
    score: Some
    error: Some
    count: Index
    understood: tuple[str, ...]

    def vocabulary(self) -> Vocabulary:
        """The letters, from the shortest sequence to the longest."""
        sizes = [len(split(text, self.letters) or "") for text in self.sequences]
        return Vocabulary(self.letters, min(sizes), max(sizes))


@dataclass
class Faults:
    """Rows that cannot be used, by kind: how many, and the first."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, line: int, cell: str = "") -> None:
        shown = f" ({cell[:40]})" if cell else ""
        self.found.setdefault(kind, []).append(f"line {line}{shown}")

    def left_out(self, rows: int, bad_rows: BadRows) -> str:
        """All of them in one sentence, empty if there are none, where they may be left out.

        Raises:
            ValueError: If they may not.
        """
        if self.found and bad_rows == "stop":
            raise ValueError(f"{self.told(rows)}. Correct them, or leave them out with --bad-rows drop")
        return self.told(rows) if self.found else ""

    def told(self, rows: int) -> str:
        """All of them in one sentence."""
        parts = [f"{len(all_of)} {kind}, first {all_of[0]}" for kind, all_of in self.found.items()]
        return f"{sum(map(len, self.found.values())):,} of {rows:,} rows cannot be used: {'; '.join(parts)}"


def read_assay(
    path: Path,
    sequence: str | None = None,
    score: str | None = None,
    alphabet: str | Sequence[str] | None = None,
    bad_rows: BadRows = "stop",
) -> Assay:
    """The sequences and scores of a table or of FASTA, packed or not.

    Args:
        sequence: Column of the sequences, by name or number; found if not given.
        score: Column of the scores; found if not given. There may be none, or holes in it.
        alphabet: `dna`, `rna`, `protein`, or a file of tokens with blanks or ends of lines between them; or
            a sequence of the tokens; found if not given.
        bad_rows: `stop` refuses a file with rows that cannot be used, and tells of all of them; `drop`
            leaves them out.

    Raises:
        UnreadableError: In one sentence that names the file and says what to do.
    """
    with naming(path):
        table = read_any_table(path)
        letters = letters_of(alphabet) if isinstance(alphabet, str) else tuple(alphabet or ())
        header, body = header_of(table, [name for name in (sequence, score) if name])
        if not body.rows:
            raise ValueError("there are no rows below the header")
        place = sequence_column(header, body, sequence, letters)
        scored = score_column(header, body, score, place)
        kind, letters = (
            ("given", letters) if letters else letters_in([cell_of(row, place) for row in body.rows])
        )
        found, faults = _collected(header, body, place, scored, letters)
        told = faults.left_out(len(body.rows), bad_rows)
        if not found:
            raise ValueError(f"{told}; name other columns or another alphabet")
        said = [f"{path}: {table.kind}, {len(body.rows):,} rows"]
        said += [f"sequences: {called(header, place)}, {kind}"]
        said += ["scores: none" if scored is None else f"scores: {called(header, scored)}"]
        return _averaged(found, letters, (*said, *([f"left out: {told}"] if told else [])))


def _collected(
    header: list[str], body: Table, place: int, scored: int | None, letters: tuple[str, ...]
) -> tuple[dict[str, list[float]], Faults]:
    """The measurements of every sequence, and the rows that cannot be used."""
    found: dict[str, list[float]] = {}
    faults = Faults()
    numbers = [] if scored is None else [cell_of(row, scored) for row in body.rows]
    comma = has_decimal_commas(numbers)
    for number, (row, line) in enumerate(zip(body.rows, body.lines, strict=True)):
        cell = cell_of(row, place)
        text = cleaned(cell, letters)
        value = number_of(numbers[number], comma) if numbers else math.nan
        upper = cell.upper()
        if len(row) < len(header) or any(row[len(header) :]):
            faults.add(f"with another number of cells than the header, {len(header)}", line, str(len(row)))
        elif not text:
            faults.add("without a sequence", line)
        elif split(text, letters) is None:
            faults.add(f"with other letters than {listed(letters)}", line, cell)
        elif "".join(letters) in (DNA, RNA) and "U" in upper and "T" in upper:
            faults.add("with both T and U", line, cell)
        elif value is None or math.isinf(value):
            faults.add("with a score that is no finite number", line, numbers[number])
        else:
            found.setdefault(text, []).append(value)
    return found, faults


def averages(found: Mapping[str, Sequence[float]]) -> tuple[Some, Some, Index]:
    """Of each one's measurements, NaN where a cell was empty: mean, standard error and number."""
    score, error, count = [], [], []
    for values in found.values():
        held = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
        score.append(held.mean())
        error.append(held.std() / len(held) ** 0.5 if len(held) > 1 else held.new_tensor(math.nan))
        count.append(len(held))
    return torch.stack(score), torch.stack(error), torch.tensor(count)


def _averaged(found: Mapping[str, Sequence[float]], letters: tuple[str, ...], said: tuple[str, ...]) -> Assay:
    assay = Assay(list(found), letters, *averages(found), tuple(said))
    sizes, scored, repeated = assay.vocabulary(), int((assay.count > 0).sum()), int((assay.count > 1).sum())
    lengths = " to ".join(map(str, sorted({sizes.shortest, sizes.longest})))
    line = (
        f"{len(found):,} different sequences of {lengths} letters, {scored:,} with a score, of which"
        f" {repeated:,} are means of several"
    )
    return replace(assay, understood=(*said, line))
