"""Byte-pair tokens of SMILES (Gage, 1994; Sennrich et al., 2016, https://arxiv.org/abs/1508.07909).

The symbols of SMILES, such as c, Cl, [nH], ( and 1, are the first tokens; each further one stands for two of
those before it that often follow one another, such as c1ccc. A molecule has 35 symbols, but ten tokens.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from difftilt.data.vocabulary import END, spell
from difftilt.shapes import Index, Tokens

SYMBOL = re.compile(r"\[[^\]\n]+\]|Br|Cl|%\d\d|.")
FIRST = 0xE000  # a private part of Unicode: token k is its k-th character while texts are encoded
MOST = 6000  # tokens, that it has room for
RAREST = 1e-3  # share of the texts that a symbol occurs in, to become a token
LOOKED_AT = 100_000  # texts that symbols are counted in; pairs in a fifth of them
COVERED = 0.999  # share of the texts that are no longer than the longest row


@dataclass(frozen=True)
class Pieces:
    """What tokens spell. Rows are as long as the longest text; one more token follows a shorter one's end.

    Args:
        symbols: What the first tokens spell, one symbol of SMILES each.
        merges: Of each further token the two before it that it stands for, in the order in which they merge.
        longest: Tokens of the longest text, at least 1.
    """

    symbols: tuple[str, ...]
    merges: tuple[tuple[int, int], ...]
    longest: int

    def __post_init__(self):
        count = len(self.symbols) + len(self.merges)
        pairs = enumerate(self.merges, len(self.symbols))
        if not (self.symbols and self.longest >= 1 and count <= MOST) or any(
            SYMBOL.fullmatch(symbol) is None for symbol in self.symbols
        ):
            raise ValueError(
                f"tokens are 1 to {MOST} symbols of SMILES and pairs of them, in rows of 1 or more, but got"
                f" {len(self.symbols)} symbols, {len(self.merges)} pairs and rows of {self.longest}"
            )
        if any(len(pair) != 2 or not 0 <= min(pair) <= max(pair) < own for own, pair in pairs):
            raise ValueError("each pair of tokens must be made of two that come before it; make them anew")

    @cached_property
    def alphabet(self) -> tuple[str, ...]:
        """What every token spells, the end's included."""
        letters = list(self.symbols)
        for first, second in self.merges:
            letters.append(letters[first] + letters[second])
        return (*letters, END)

    def encode(self, texts: Sequence[str]) -> tuple[Tokens, Index]:
        """Rows of tokens, and the places of their texts: texts with other symbols, or too long, have none."""
        rows = [_codes(line) for line in _merged(_spaced(texts, self.symbols), self).split("\n")]
        count, end = len(self.alphabet) - 1, len(self.alphabet) - 1
        kept = [
            place
            for place, row in enumerate(rows)
            if 0 < len(row) <= self.longest and row.min() >= 0 and row.max() < count
        ]
        found = np.full((len(kept), self.longest), end)
        for row, place in enumerate(kept):
            found[row, : len(rows[place])] = rows[place]
        return torch.from_numpy(found), torch.tensor(kept, dtype=torch.long)

    def spell(self, tokens: Tokens) -> list[str]:
        """One text per row of tokens."""
        return spell(tokens, self.alphabet)


def learn_pieces(texts: Sequence[str], merges: int) -> Pieces:
    """The tokens of a set of texts: its symbols, and the pairs that are most frequent, one after another.

    Rare symbols are left out, and so are the longest texts.

    Args:
        merges: Pairs; fewer where none comes twice.
    """
    texts = texts[:LOOKED_AT]
    counts = Counter(symbol for text in texts for symbol in set(SYMBOL.findall(text)))
    symbols = tuple(sorted(symbol for symbol, n in counts.items() if n >= max(RAREST * len(texts), 1)))
    known = set(symbols)
    some = [text for text in texts if set(SYMBOL.findall(text)) <= known][: LOOKED_AT // 5]
    corpus, pairs = _spaced(some, symbols), []
    while len(pairs) < min(merges, MOST - len(symbols)) and (pair := _commonest(corpus)):
        corpus = _merge(corpus, pair, len(symbols) + len(pairs))
        pairs.append(pair)
    longest = int(np.quantile([len(line) for line in corpus.split("\n")], COVERED, method="higher"))
    return Pieces(symbols, tuple(pairs), longest)


def _spaced(texts: Sequence[str], symbols: Sequence[str]) -> str:
    """One line per text, with one character per symbol."""
    corpus = "\n".join("".join(text.split()) or " " for text in texts)
    for symbol in sorted(symbols, key=len, reverse=True):
        corpus = corpus.replace(symbol, chr(FIRST + symbols.index(symbol)))
    return corpus


def _merged(corpus: str, pieces: Pieces) -> str:
    for number, pair in enumerate(pieces.merges, len(pieces.symbols)):
        corpus = _merge(corpus, pair, number)
    return corpus


def _merge(corpus: str, pair: tuple[int, int], number: int) -> str:
    return corpus.replace("".join(chr(FIRST + token) for token in pair), chr(FIRST + number))


def _codes(line: str) -> np.ndarray:
    """The tokens of a line; below 0 or too high where a character is none."""
    return np.frombuffer(line.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64) - FIRST


def _commonest(corpus: str) -> tuple[int, int] | None:
    """The two tokens that most often follow one another, if any do twice; the first of several in order."""
    codes = _codes(corpus)
    inside = (codes[:-1] >= 0) & (codes[1:] >= 0)
    pairs, counts = np.unique(codes[:-1][inside] * MOST + codes[1:][inside], return_counts=True)
    if not len(pairs) or counts.max() < 2:
        return None
    first, second = divmod(int(pairs[counts.argmax()]), MOST)
    return first, second
