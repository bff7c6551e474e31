"""In how many letters sequences differ: substitutions, or edits where lengths differ."""

from collections.abc import Callable

import torch
from torch import Tensor

from difftilt.shapes import Sequences

CELLS = 2**24  # of a table of edits that is held at a time


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
