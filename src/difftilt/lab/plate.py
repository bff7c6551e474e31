"""Plates: which candidates make a batch that is new and diverse, and the files that go to the bench."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from difftilt.data.atomic import atomic_file
from difftilt.data.vocabulary import END, Vocabulary
from difftilt.lab.records import Proposal
from difftilt.shapes import Index, Sequences

ROWS, COLUMNS = "ABCDEFGH", 12  # of a plate
CELLS = 2**24  # of a table of edits that is held at a time
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


def write_round(folder: Path, number: int, proposals: Sequence[Proposal]) -> list[Path]:
    """Writes a round's table, with an empty column for results, and its FASTA; what is there stays."""
    table, fasta = (folder / "plates" / f"round-{number:02}.{kind}" for kind in ("csv", "fasta"))
    if not table.exists():
        with atomic_file(table) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(HEAD)
            for each in proposals:
                predicted, std = ("" if x is None else f"{x:.6g}" for x in (each.predicted, each.std))
                far = ("" if x is None else x for x in (each.to_labelled, each.to_proposed))
                where = each.rule, each.plate, each.well
                writer.writerow([each.id, each.text, predicted, std, *far, *where, ""])
    if not fasta.exists():
        with atomic_file(fasta) as part:
            part.write_text("".join(f">{each.id}\n{each.text}\n" for each in proposals), encoding="utf-8")
    return [table, fasta]


@dataclass
class Batch:
    """A batch that grows by sequences that are new, and far enough from each other.

    Args:
        vocabulary: Of the sequences.
        labelled: What was measured.
        taken: What was measured or proposed.
        distance: Letters in which any two differ: substitutions where all have one length, else edits.
        per_parent: How many may have the same measured sequence as their nearest one; any number by default.
        both_strands: A sequence and its reverse complement, of DNA in the order A, C, G, T, are the same.
    """

    vocabulary: Vocabulary
    labelled: Sequences
    taken: Sequences
    distance: int
    per_parent: int | None = None
    both_strands: bool = False
    rows: list[Index] = field(default_factory=list)

    def __post_init__(self):
        self._seen = {key for x in self._strands(self.taken) for key in map(tuple, x.tolist())}
        self._children: Counter[int] = Counter()

    @property
    def sample(self) -> Sequences:
        return torch.stack(self.rows) if self.rows else self.taken[:0]

    def add(self, candidates: Sequences, count: int) -> int:
        """Takes up to `count` candidates, in their order, and returns how many."""
        x = self._new(candidates)
        far = self.apart(x, self.sample).amin(1) >= self.distance if self.rows else torch.ones(len(x)).bool()
        parents = self._parents(x)
        begun = len(self.rows)
        for row in range(len(x)):
            if len(self.rows) - begun == count:
                break
            if far[row] and self._may(parents[row]):
                self.rows.append(x[row])
                self._seen |= {tuple(y[0].tolist()) for y in self._strands(x[row : row + 1])}
                self._children[parents[row]] += 1
                far &= self.apart(x, x[row : row + 1])[:, 0] >= max(self.distance, 1)
        return len(self.rows) - begun

    def apart(self, x: Sequences, y: Sequences) -> Tensor:
        """In how many letters each x differs from each y, of both strands the less."""
        end = len(self.vocabulary.letters) if END in self.vocabulary.alphabet else None
        found = [apart(x, other, end) for other in self._strands(y)]
        return torch.stack(found).amin(0)

    def nearest(self, y: Sequences) -> list[int] | list[None]:
        """In how many letters each of the batch differs from the nearest y; None if there is none."""
        return self.apart(self.sample, y).amin(1).tolist() if len(y) else [None] * len(self.rows)

    def _new(self, candidates: Sequences) -> Sequences:
        """Those that were not seen, none twice."""
        keys = dict.fromkeys(key for key in map(tuple, candidates.tolist()) if key not in self._seen)
        return torch.tensor(list(keys), dtype=torch.long).view(-1, self.vocabulary.longest)

    def _parents(self, x: Sequences) -> list[int]:
        if self.per_parent is None or not len(self.labelled):
            return [0] * len(x)
        return self.apart(x, self.labelled).argmin(1).tolist()

    def _may(self, parent: int) -> bool:
        free = self.per_parent is None or not len(self.labelled)
        return free or self._children[parent] < (self.per_parent or 0)

    def _strands(self, x: Sequences) -> list[Sequences]:
        return [x, (len(self.vocabulary.letters) - 1 - x).flip(1)] if self.both_strands else [x]


def apart(x: Sequences, y: Sequences, end: int | None) -> Tensor:
    """In how many letters each x differs from each y, as (x, y).

    Args:
        end: The token that follows a text to the end of its row; None where all texts have one length. With
            it the least number of letters counts that are changed, left out or put in (Levenshtein).
    """
    rows = max(1, CELLS // (max(len(y), 1) * x.shape[1]))
    measure: Callable[[Sequences, Sequences], Tensor] = _substitutions if end is None else _edits(end)
    return torch.cat([measure(part, y) for part in x.split(rows)]) if len(x) else x.new_zeros(0, len(y))


def _substitutions(x: Sequences, y: Sequences) -> Tensor:
    return (x[:, None] != y).sum(2)


def _edits(end: int) -> Callable[[Sequences, Sequences], Tensor]:
    def edits(x: Sequences, y: Sequences) -> Tensor:
        place = torch.arange(y.shape[1] + 1, dtype=torch.int32)
        lengths, ends = (x != end).sum(1), (y != end).sum(1).expand(len(x), -1)[..., None]
        row = place.expand(len(x), len(y), -1)  # edits from the first i letters of x to the first j of y
        found = row.gather(2, ends)[..., 0]
        for i in range(x.shape[1]):
            changed = row[..., :-1] + (x[:, i, None, None] != y)
            left_out = row + 1
            least = torch.cat([left_out[..., :1], torch.minimum(changed, left_out[..., 1:])], 2)
            row = (least - place).cummin(2).values + place  # put in
            found = torch.where((lengths == i + 1)[:, None], row.gather(2, ends)[..., 0], found)
        return found

    return edits
