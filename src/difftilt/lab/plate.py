"""Plates: which candidates make a batch that is new and diverse, and the files that go to the bench."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from difftilt.data.atomic import atomic_file
from difftilt.lab.language import Language
from difftilt.lab.records import Proposal
from difftilt.shapes import Index, Sequences

ROWS, COLUMNS = "ABCDEFGH", 12  # of a plate
HEAD = (
    *("id", "sequence", "predicted", "std", "to_labelled", "to_proposed", "rule", "plate", "well"),
    "measurement",
)


def wells(first: int) -> Iterator[tuple[int, str]]:
    """Plate and well of one sequence after the other, row by row.

    Args:
        first: Number of the first plate.
    """
    plate = first
    while True:
        yield from ((plate, f"{row}{column:02}") for row in ROWS for column in range(1, COLUMNS + 1))
        plate += 1


def write_round(folder: Path, number: int, proposals: Sequence[Proposal], language: Language) -> list[Path]:
    """Writes a round's table, with an empty column for results, and a list of texts; what is there stays."""
    kinds = ("csv", language.kind)
    table, listed = (folder / "plates" / f"round-{number:02}.{kind}" for kind in kinds)
    if not table.exists():
        with atomic_file(table) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEAD)
            for each in proposals:
                predicted, std = ("" if x is None else f"{x:.6g}" for x in (each.predicted, each.std))
                far = ("" if x is None else x for x in (each.to_labelled, each.to_proposed))
                where = each.rule, each.plate, each.well
                writer.writerow([each.id, each.text, predicted, std, *far, *where, ""])
    if not listed.exists():
        with atomic_file(listed) as part:
            part.write_text(language.listed([(each.id, each.text) for each in proposals]), encoding="utf-8")
    return [table, listed]


@dataclass
class Batch:
    """A batch that grows by texts that are new, and far enough from each other.

    Args:
        language: Of the texts.
        labelled: The points of what was measured.
        taken: Those of what was measured or proposed.
        distance: How far any two are apart, as the language has it.
        per_parent: How many may have the same measured text as their nearest one; any number by default.
        rows: Its points.
        drawn: What a chain drew for each.
    """

    language: Language
    labelled: Sequences
    taken: Sequences
    distance: int
    per_parent: int | None = None
    rows: list[Index] = field(default_factory=list)
    drawn: list[Index] = field(default_factory=list)

    def __post_init__(self):
        self._seen = {key for x in self.language.same(self.taken) for key in map(tuple, x.tolist())}
        self._children: Counter[int] = Counter()

    @property
    def points(self) -> Sequences:
        return torch.stack(self.rows) if self.rows else self.taken[:0]

    @property
    def sample(self) -> Sequences:
        """What a chain drew."""
        return torch.stack(self.drawn)

    def add(self, candidates: Sequences, count: int) -> int:
        """Takes up to `count` of what a chain drew, in its order, and returns how many."""
        x, drawn = self._new(*self.language.drawn(candidates))
        apart, far = self.language.apart, torch.ones(len(x)).bool()
        far = apart(x, self.points).amin(1) >= self.distance if self.rows else far
        parents = self._parents(x)
        begun = len(self.rows)
        for row in range(len(x)):
            if len(self.rows) - begun == count:
                break
            if far[row] and self._may(parents[row]):
                self.rows.append(x[row])
                self.drawn.append(drawn[row])
                self._seen |= {tuple(y[0].tolist()) for y in self.language.same(x[row : row + 1])}
                self._children[parents[row]] += 1
                far &= apart(x, x[row : row + 1])[:, 0] >= max(self.distance, 1)
        return len(self.rows) - begun

    def nearest(self, y: Sequences) -> list[int] | list[None]:
        """How far each of the batch is from the nearest y; None if there is none."""
        return self.language.apart(self.points, y).amin(1).tolist() if len(y) else [None] * len(self.rows)

    def _new(self, points: Sequences, drawn: Sequences) -> tuple[Sequences, Sequences]:
        """Those that were not seen, none twice."""
        first: dict[tuple[int, ...], int] = {}
        for row, key in enumerate(map(tuple, points.tolist())):
            if key not in self._seen:
                first.setdefault(key, row)
        rows = torch.tensor(list(first.values()), dtype=torch.long)
        return points[rows], drawn[rows]

    def _parents(self, x: Sequences) -> list[int]:
        if self.per_parent is None or not len(self.labelled):
            return [0] * len(x)
        return self.language.apart(x, self.labelled).argmin(1).tolist()

    def _may(self, parent: int) -> bool:
        free = self.per_parent is None or not len(self.labelled)
        return free or self._children[parent] < (self.per_parent or 0)
