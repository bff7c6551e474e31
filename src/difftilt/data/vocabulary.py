"""Text to tokens and back."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor

from difftilt.shapes import Tokens

DNA = "ACGT"
RNA = "ACGU"
PROTEIN = "ACDEFGHIKLMNPQRSTVWY"
END = ""  # what the token after a text's end spells


class Letters(TypedDict):
    """A `Vocabulary` as JSON holds it."""

    letters: list[str]
    shortest: int
    longest: int


@dataclass(frozen=True)
class Vocabulary:
    """Which texts a model writes: of which tokens, and of how many.

    Rows of tokens are as long as the longest text. Where texts differ in length, one more token follows each
    text until the end of its row, and spells nothing.

    Args:
        letters: What each token spells; none is how another one begins, so that a text has one reading.
        shortest: Tokens of the shortest text, at least 0.
        longest: Tokens of the longest, at least 1.
    """

    letters: tuple[str, ...]
    shortest: int
    longest: int

    def __post_init__(self):
        if not 0 <= self.shortest <= self.longest or not self.longest:
            raise ValueError(
                f"texts have 0 <= shortest <= longest tokens and longest >= 1, but got {self.shortest} to"
                f" {self.longest}"
            )
        check_letters(self.letters)

    @property
    def alphabet(self) -> tuple[str, ...]:
        """What every token spells, the end's included."""
        return (*self.letters, END) if self.shortest < self.longest else self.letters

    @cached_property
    def _token(self) -> dict[str, int]:
        return {letter: token for token, letter in enumerate(self.letters)}

    @classmethod
    def of(cls, written: "Letters") -> "Vocabulary":
        """What a file says of one."""
        return cls(tuple(written["letters"]), written["shortest"], written["longest"])

    def encode(self, lines: Iterable[Any], first: int = 1) -> Tokens:
        """One row of tokens per text.

        Args:
            first: What messages call the first text.

        Raises:
            ValueError: For the first text that has other letters, or too few or many tokens.
        """
        rows = []
        for row, line in enumerate(words(lines, first), first):
            found = split(line, self.letters)
            if found is None:
                raise ValueError(f"row {row} ({line[:60]}) is not made of the letters {listed(self.letters)}")
            if not self.shortest <= len(found) <= self.longest:
                raise ValueError(
                    f"row {row} ({line[:60]}) has {len(found)} letters, but {self.shortest} to {self.longest}"
                    " are expected"
                )
            ends = [len(self.letters)] * (self.longest - len(found))
            rows.append([self._token[letter] for letter in found] + ends)
        return torch.tensor(rows, dtype=torch.long).view(-1, self.longest)

    def spell(self, tokens: Any) -> list[str]:
        """One text per row of tokens."""
        return spell(tokens, self.alphabet)


def check_letters(letters: Sequence[str]) -> None:
    """Raises ValueError unless every text that letters make has one reading."""
    if not letters or "" in letters:
        raise ValueError(f"an alphabet has at least one letter, and none is empty, but got {list(letters)}")
    for one, other in pairwise(sorted(letters)):  # what begins with a word sorts next to it
        if other.startswith(one):
            what = "stands twice" if one == other else f"is how {other!r} begins, so texts can be misread"
            raise ValueError(f"in the alphabet, {one!r} {what}: write tokens that differ, such as [{one}]")


def split(text: str, letters: Collection[str]) -> list[str] | None:
    """The letters that a text is made of, one after the other; None if it holds anything else."""
    if set(text) <= set(letters):
        return list(text)
    found = re.findall("|".join(map(re.escape, letters)), text)
    return found if sum(map(len, found)) == len(text) else None


def listed(letters: Sequence[str]) -> str:
    """The letters of an alphabet, for messages."""
    return ("" if all(len(letter) <= 1 for letter in letters) else " ").join(filter(None, letters))


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


def spell(tokens: Any, alphabet: Sequence[str]) -> list[str]:
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


def check_tokens(tokens: Tokens, alphabet: Sequence[str]) -> None:
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
