"""Text to tokens and back."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftilt.shapes import Tokens

DNA = "ACGT"
PROTEIN = "ACDEFGHIKLMNPQRSTVWY"


def encode(
    lines: Iterable[Any], alphabet: str, length: int | None = None, unique: bool = False, first: int = 1
) -> Tokens:
    """One row of tokens per line: token k stands for the k-th letter of the alphabet.

    Args:
        lines: Words of one length, in letters of the alphabet: a list, an array, a column of a table.
        length: Of every word; that of the first by default.
        unique: Refuse words that came before.
        first: What messages call the first line, for instance 2 below a header.

    Raises:
        ValueError: For the first row that is missing, empty, too short or long, has another letter, or
            repeats one; and for text that is no list of words.
    """
    lines = words(lines, first)
    if not lines:
        raise ValueError("there are no sequences: at least one row is needed")
    length = len(lines[0]) if length is None else length
    for row, line in enumerate(lines, first):
        if not line.strip():
            raise ValueError(f"row {row} is empty: remove it, or write its sequence")
        if len(line) != length:
            raise ValueError(f"row {row} ({line[:60]}) has {len(line)} letters, but {length} are expected")
    text = "".join(lines).encode("utf-32-le", "surrogatepass")
    points = np.frombuffer(text, np.uint32).reshape(len(lines), length)
    letters = [ord(letter) for letter in alphabet]
    table = np.full(max(letters) + 2, -1)
    table[letters] = range(len(letters))
    tokens = table[points.clip(max=max(letters) + 1)]
    wrong = np.argwhere(tokens < 0)
    if len(wrong):
        row, position = wrong[0].tolist()
        raise ValueError(
            f"row {row + first} holds {lines[row][position]!r} at position {position + 1},"
            f" but the letters are {alphabet}"
        )
    if unique:
        _refuse_repeats(lines, first)
    return torch.from_numpy(tokens)


def words(lines: Iterable[Any], first: int = 1) -> list[str]:
    """The text of every row of a list, an array, or a column of a table.

    Args:
        first: What messages call the first row.

    Raises:
        ValueError: For a text that is no list of them, and for the first row that holds no text.
    """
    if isinstance(lines, str | bytes):
        raise ValueError(
            f"got one text ({str(lines)[:60]}), but a list of them is expected: write [text] for a single one"
        )
    rows = list(lines)
    for row, line in enumerate(rows, first):
        if isinstance(line, str):
            continue
        if line is None or type(line).__name__ == "NAType" or (isinstance(line, float) and line != line):
            raise ValueError(f"row {row} is missing (got {line}): remove it, or write its text")
        raise ValueError(f"row {row} must be text, but got a {type(line).__name__} ({str(line)[:60]})")
    return rows


def spell(tokens: Any, alphabet: str) -> list[str]:
    """One word per row of tokens: a tensor, an array, or a list of lists.

    Raises:
        ValueError: If these are no rows of whole numbers, each of which stands for a letter.
    """
    try:
        rows = torch.as_tensor(tokens)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError("tokens must be rows of whole numbers, all of one length") from error
    if rows.ndim != 2 or rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool:
        raise ValueError(
            f"tokens must be rows of whole numbers, but got {rows.dtype} of shape {tuple(rows.shape)};"
            " write tokens[None] for a single word"
        )
    check_tokens(rows.long(), alphabet)
    letters = np.array(list(alphabet))[rows.long().cpu().numpy()]
    return ["".join(row) for row in letters]


def check_tokens(tokens: Tokens, alphabet: str) -> None:
    """Raises ValueError for the first token that is no letter's."""
    wrong = ((tokens < 0) | (tokens >= len(alphabet))).nonzero().tolist()
    if wrong:
        row, position = wrong[0]
        raise ValueError(
            f"row {row + 1} holds token {tokens[row, position].item()} at position {position + 1},"
            f" but the {len(alphabet)} letters are tokens 0 to {len(alphabet) - 1}"
        )


def all_sequences(categories: int, length: int) -> Tokens:
    """Every sequence of tokens, the last position varying fastest."""
    return torch.cartesian_prod(*[torch.arange(categories)] * length).view(-1, length)


def place_values(categories: int, length: int) -> Tensor:
    """What a token counts at each position in a sequence's place among all of them."""
    return categories ** torch.arange(length).flip(0)


def _refuse_repeats(lines: Sequence[str], first: int) -> None:
    seen: dict[str, int] = {}
    for row, line in enumerate(lines, first):
        if seen.setdefault(line, row) != row:
            raise ValueError(f"row {row} ({line[:60]}) repeats row {seen[line]}: keep one of them")
