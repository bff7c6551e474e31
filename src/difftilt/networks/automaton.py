"""Finite automata: which sequences of tokens obey a constraint, decided letter by letter.

The constructors return the smallest automaton of their constraint, with its states in the order of the
shortest sequences that lead there, so that two of one meaning are equal. An alphabet is what each token
spells; the one that spells nothing stands after the end of a text that is shorter than others, and no
constraint counts it.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from difftilt.data.vocabulary import END, Vocabulary, listed, split

LARGEST = 2**14  # states of an automaton, before those that accept alike are merged
CODES = {
    **{"R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC"},
    **{"B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT"},
}

Choices = list[set[int]]  # the tokens that each place of a motif stands for
Begun = frozenset[tuple[int, int]]  # motifs that were begun, and how much of each was read
S = TypeVar("S", bound=Hashable)


@dataclass(frozen=True)
class Automaton:
    """Reads a sequence token by token, beginning in state 0, and accepts it or not.

    Args:
        moves: Of each state, the next state for each token.
        accepting: Of each state, whether a sequence may end there.
        length: Tokens per sequence.
    """

    moves: tuple[tuple[int, ...], ...]
    accepting: tuple[bool, ...]
    length: int

    def __post_init__(self):
        states, sizes = len(self.accepting), {len(row) for row in self.moves}
        if len(self.moves) != states or len(sizes) != 1 or 0 in sizes:
            raise ValueError(
                f"an automaton of {states} states needs a move for each of them and each token, but got"
                f" {len(self.moves)} rows of lengths {sorted(sizes)}"
            )
        if not all(0 <= state < states for row in self.moves for state in row):
            raise ValueError(f"the moves of an automaton of {states} states lead to 0 to {states - 1} only")

    def accepts(self, sequence: Sequence[int]) -> bool:
        """Whether tokens without a mask obey the constraint."""
        state = 0
        for token in sequence:
            state = self.moves[state][token]
        return self.accepting[state] and len(sequence) == self.length


def ended(vocabulary: Vocabulary) -> Automaton:
    """Rows of tokens that spell a text: letters, as many as texts have, and then nothing but its end."""
    letters, shortest = len(vocabulary.letters), vocabulary.shortest

    def step(read: int | None, token: int) -> int | None:
        """How many letters were read, up to the fewest; -1 after the end."""
        if token < letters:
            return None if read is None or read < 0 else min(read + 1, shortest)
        return -1 if read in (-1, shortest) else None

    start: int | None = 0
    accepts = (-1, shortest)
    return explore(start, step, lambda read: read in accepts, vocabulary.longest, len(vocabulary.alphabet))


def forbid(
    motifs: Sequence[str], length: int, alphabet: Sequence[str], *, both_strands: bool = False
) -> Automaton:
    """Sequences that contain none of the motifs.

    Args:
        motifs: Words of the alphabet; of nucleotides also in the IUPAC code, such as N for any of them.
        length: Tokens per sequence.
        alphabet: What each token spells, such as "ACGT".
        both_strands: Forbid the reverse complements as well.

    Source:
        Aho and Corasick (1975), https://doi.org/10.1145/360825.360855
    """
    if isinstance(motifs, str) or not motifs:
        raise ValueError(f"forbid needs a list of motifs such as ['GAATTC'], but got {motifs!r}")
    _check_alphabet(alphabet)
    words = [_choices(motif, length, alphabet) for motif in motifs]
    if both_strands:
        words += [_reverse_complement(word, alphabet) for word in words]
    starts = frozenset((word, 0) for word in range(len(words)))

    def step(begun: Begun | None, token: int) -> Begun | None:
        if begun is None:
            return None
        read = {(word, place + 1) for word, place in starts | begun if token in words[word][place]}
        return None if any(place == len(words[word]) for word, place in read) else frozenset(read)

    nothing: Begun | None = frozenset()
    return explore(nothing, step, lambda begun: begun is not None, length, len(alphabet))


def count_range(
    letters: Sequence[str], low: int, high: int, length: int, alphabet: Sequence[str]
) -> Automaton:
    """Sequences of which `low` to `high` tokens, both included, are one of `letters`."""
    counted = _places(letters, alphabet)
    if not 0 <= low <= high or low > length:
        raise ValueError(
            f"a range of counts among {length} letters needs 0 <= low <= high and low <= {length}, but got"
            f" {low} to {high}"
        )
    most = min(high, length)
    return explore(
        0,
        lambda count, token: min(count + (token in counted), most + 1),
        lambda count: low <= count <= most,
        length,
        len(alphabet),
    )


def gc_range(low: float, high: float, length: int, alphabet: Sequence[str]) -> Automaton:
    """Sequences of nucleotides in which the share of G and C is `low` to `high`, in [0, 1] and included."""
    if not _nucleotides(alphabet):
        raise ValueError(
            f"only nucleotides have a share of G and C, but the alphabet is {listed(alphabet)!r}"
        )
    return share_range("GC", low, high, length, alphabet)


def share_range(
    letters: Sequence[str], low: float, high: float, length: int, alphabet: Sequence[str]
) -> Automaton:
    """Sequences of which a share of `low` to `high`, in [0, 1] and included, is one of `letters`.

    Args:
        length: Tokens per sequence; where the alphabet has an end, the share is of those ahead of it.
    """
    of = " and ".join(letters)
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a share of {of} needs 0 <= low <= high <= 1, but got {low} to {high}")
    slack = 1e-9  # 0.07 * 100 is above 7 in floats
    if END in list(alphabet):
        counted, end = _places(letters, alphabet), list(alphabet).index(END)

        def step(seen: tuple[int, int], token: int) -> tuple[int, int]:
            return min(seen[0] + (token in counted), length), min(seen[1] + (token != end), length)

        return explore(
            (0, 0),
            step,
            lambda seen: low * seen[1] - slack <= seen[0] <= high * seen[1] + slack,
            length,
            len(alphabet),
        )
    least, most = math.ceil(low * length - slack), math.floor(high * length + slack)
    if least > most:
        raise ValueError(
            f"no number of {of} among {length} letters is a share of {low} to {high}; widen the range"
        )
    return count_range(letters, least, most, length, alphabet)


def both(first: Automaton, second: Automaton) -> Automaton:
    """Sequences that obey two constraints."""
    (length, letters), other = ((a.length, len(a.moves[0])) for a in (first, second))
    if (length, letters) != other:
        raise ValueError(
            f"one constraint is on {length} tokens of {letters} kinds, the other on {other[0]} of"
            f" {other[1]}; give them one length and one alphabet"
        )

    def step(states: tuple[int, int], token: int) -> tuple[int, int]:
        return first.moves[states[0]][token], second.moves[states[1]][token]

    return explore(
        (0, 0),
        step,
        lambda states: first.accepting[states[0]] and second.accepting[states[1]],
        length,
        letters,
    )


def explore(
    start: S, step: Callable[[S, int], S], accepts: Callable[[S], bool], length: int, letters: int
) -> Automaton:
    """The smallest automaton of what a machine accepts, given its first state and its moves."""
    states, moves, numbers = [start], [], {start: 0}
    for state in states:  # which grow meanwhile
        after = [step(state, token) for token in range(letters)]
        for new in after:
            if new not in numbers:
                numbers[new] = len(states)
                states.append(new)
        moves.append([numbers[new] for new in after])
        if len(states) > LARGEST:
            raise ValueError(
                f"the constraint needs more than {LARGEST} states; forbid fewer or less ambiguous motifs"
            )
    return _smallest(moves, [accepts(state) for state in states], length)


def _smallest(moves: list[list[int]], accepting: list[bool], length: int) -> Automaton:
    """Merges states that accept the same continuations (Moore, 1956), and so all that lead nowhere."""
    group, count = [int(end) for end in accepting], 0
    while len(set(group)) > count:
        count, numbers = len(set(group)), {}
        keys = [(group[state], *(group[to] for to in row)) for state, row in enumerate(moves)]
        group = [numbers.setdefault(key, len(numbers)) for key in keys]
    first: dict[int, int] = {}
    for state, number in enumerate(group):
        first.setdefault(number, state)
    return Automaton(
        tuple(tuple(group[to] for to in moves[state]) for state in first.values()),
        tuple(accepting[state] for state in first.values()),
        length,
    )


def _choices(motif: str, length: int, alphabet: Sequence[str]) -> Choices:
    """The tokens that each letter of a motif stands for."""
    codes: dict[str, Sequence[str]] = {letter: (letter,) for letter in alphabet if letter}
    if _nucleotides(alphabet):
        last = "U" if "U" in alphabet else "T"
        codes |= {code: letters.replace("T", last) for code, letters in CODES.items()}
    word = split(motif, codes)
    if word is None:
        unknown = sorted(set(motif) - set(codes))
        raise ValueError(f"motif {motif!r} has letters {unknown}, but the alphabet is {listed(alphabet)!r}")
    if not 1 <= len(word) <= length:
        raise ValueError(f"motif {motif!r} has {len(word)} letters, but the sequences have {length}")
    return [{alphabet.index(letter) for letter in codes[code]} for code in word]


def _reverse_complement(word: Choices, alphabet: Sequence[str]) -> Choices:
    if not _nucleotides(alphabet):
        raise ValueError(f"only nucleotides have a second strand, but the alphabet is {listed(alphabet)!r}")
    pairs = {"A": "T" if "T" in alphabet else "U", "C": "G", "G": "C", "T": "A", "U": "A"}
    return [{alphabet.index(pairs[alphabet[token]]) for token in choice} for choice in reversed(word)]


def _nucleotides(alphabet: Sequence[str]) -> bool:
    return sorted(filter(None, alphabet)) in (sorted("ACGT"), sorted("ACGU"))


def _places(letters: Sequence[str], alphabet: Sequence[str]) -> set[int]:
    """The tokens of letters that are to be counted."""
    _check_alphabet(alphabet)
    if unknown := sorted(set(letters) - set(filter(None, alphabet))):
        raise ValueError(f"letters {unknown} are not in the alphabet {listed(alphabet)!r}; count others")
    return {alphabet.index(letter) for letter in letters}


def _check_alphabet(alphabet: Sequence[str]) -> None:
    if len(set(alphabet)) != len(alphabet):
        raise ValueError(f"an alphabet has each letter once, but got {listed(alphabet)!r}")
