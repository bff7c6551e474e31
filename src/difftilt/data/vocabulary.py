"""Text to tokens and back."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from difftilt.shapes import Tokens

DNA = "ACGT"
PROTEIN = "ACDEFGHIKLMNPQRSTVWY"


def encode(
    lines: Sequence[str], alphabet: str, length: int | None = None, unique: bool = False, first: int = 1
) -> Tokens:
    """One row of tokens per line: token k stands for the k-th letter of the alphabet.

    Args:
        lines: Words of one length, in letters of the alphabet.
        length: Of every word; that of the first by default.
        unique: Refuse words that came before.
        first: What messages call the first line, for instance 2 below a header.

    Raises:
        ValueError: For the first row that is empty, too short or long, has another letter, or repeats one.
    """
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


def spell(tokens: Tokens, alphabet: str) -> list[str]:
    """One word per row of tokens."""
    check_tokens(tokens, alphabet)
    letters = np.array(list(alphabet))[tokens.cpu().numpy()]
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
