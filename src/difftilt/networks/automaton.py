"""Finite automata: which sequences of tokens obey a constraint, decided letter by letter.

The constructors return the smallest automaton of their constraint, with its states in the order of the
shortest sequences that lead there, so that two of one meaning are equal.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

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


def forbid(motifs: Sequence[str], length: int, alphabet: str, *, both_strands: bool = False) -> Automaton:
    """Sequences that contain none of the motifs.

    Args:
        motifs: Words of the alphabet; of nucleotides also in the IUPAC code, such as N for any of them.
        length: Tokens per sequence.
        alphabet: The letter of each token, such as "ACGT".
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
    return _explore(nothing, step, lambda begun: begun is not None, length, len(alphabet))


def count_range(letters: str, low: int, high: int, length: int, alphabet: str) -> Automaton:
    """Sequences of which `low` to `high` tokens, both included, are one of `letters`."""
    _check_alphabet(alphabet)
    if unknown := sorted(set(letters) - set(alphabet)):
        raise ValueError(f"letters {unknown} are not in the alphabet {alphabet!r}; count others")
    if not 0 <= low <= high or low > length:
        raise ValueError(
            f"a range of counts among {length} letters needs 0 <= low <= high and low <= {length}, but got"
            f" {low} to {high}"
        )
    counted, most = {alphabet.index(letter) for letter in letters}, min(high, length)
    return _explore(
        0,
        lambda count, token: min(count + (token in counted), most + 1),
        lambda count: low <= count <= most,
        length,
        len(alphabet),
    )


def gc_range(low: float, high: float, length: int, alphabet: str) -> Automaton:
    """Sequences of nucleotides in which the share of G and C is `low` to `high`, in [0, 1] and included."""
    if not _nucleotides(alphabet):
        raise ValueError(f"only nucleotides have a share of G and C, but the alphabet is {alphabet!r}")
    if not 0 <= low <= high <= 1:
        raise ValueError(f"a share of G and C needs 0 <= low <= high <= 1, but got {low} to {high}")
    slack = 1e-9  # 0.07 * 100 is above 7 in floats
    least, most = math.ceil(low * length - slack), math.floor(high * length + slack)
    if least > most:
        raise ValueError(
            f"no number of G and C among {length} letters is a share of {low} to {high}; widen the range"
        )
    return count_range("GC", least, most, length, alphabet)


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

    return _explore(
        (0, 0),
        step,
        lambda states: first.accepting[states[0]] and second.accepting[states[1]],
        length,
        letters,
    )


def _explore(
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


def _choices(motif: str, length: int, alphabet: str) -> Choices:
    """The tokens that each letter of a motif stands for."""
    codes = {letter: letter for letter in alphabet}
    if _nucleotides(alphabet):
        last = "U" if "U" in alphabet else "T"
        codes |= {code: letters.replace("T", last) for code, letters in CODES.items()}
    if unknown := sorted(set(motif) - set(codes)):
        raise ValueError(f"motif {motif!r} has letters {unknown}, but the alphabet is {alphabet!r}")
    if not 1 <= len(motif) <= length:
        raise ValueError(f"motif {motif!r} has {len(motif)} letters, but the sequences have {length}")
    return [{alphabet.index(letter) for letter in codes[code]} for code in motif]


def _reverse_complement(word: Choices, alphabet: str) -> Choices:
    if not _nucleotides(alphabet):
        raise ValueError(f"only nucleotides have a second strand, but the alphabet is {alphabet!r}")
    pairs = {"A": "TU", "C": "G", "G": "C", "T": "A", "U": "A"}
    other = [next(i for i, letter in enumerate(alphabet) if letter in pairs[mate]) for mate in alphabet]
    return [{other[token] for token in choice} for choice in reversed(word)]


def _nucleotides(alphabet: str) -> bool:
    return sorted(alphabet) in (sorted("ACGT"), sorted("ACGU"))


def _check_alphabet(alphabet: str) -> None:
    if len(set(alphabet)) != len(alphabet):
        raise ValueError(f"an alphabet has each letter once, but got {alphabet!r}")
