"""The grammar of SMILES as a finite automaton: branches and rings that are open, and what may follow what.

It knows neither valences nor aromaticity, so some of what it accepts is no molecule.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from difftilt.domains.molecules.tokens import SYMBOL
from difftilt.networks.automaton import Automaton, explore

BONDS = "-=#:/\\"
END: Literal["end"] = "end"  # the state after the end, where nothing but the end can follow


@dataclass(frozen=True)
class Read:
    """What matters of the symbols so far.

    Args:
        last: The last one; a ring's digit counts as the atom that it follows, and `bond` is one that may
            lead to a ring.
        depth: Branches that are open.
        rings: The digits of the rings that are open.
    """

    last: Literal["nothing", "atom", "bond", "bond to atom", "(", ")"] = "nothing"
    depth: int = 0
    rings: frozenset[str] = frozenset()

    @property
    def whole(self) -> bool:
        """Whether a molecule may end here."""
        return self.last == "atom" and self.depth == 0 and not self.rings


State = Read | Literal["end"] | None  # None where no molecule can follow


def smiles_syntax(alphabet: Sequence[str], length: int, deepest: int) -> Automaton:
    """The SMILES of one molecule, as RDKit writes it, and nothing after its end.

    Args:
        alphabet: What each token spells, that of the end last.
        length: Tokens per row.
        deepest: Branches that may be open at once.
    """
    words = [SYMBOL.findall(text) for text in alphabet]
    known: dict[tuple[Read, tuple[str, ...]], Read | None] = {}  # tokens of one pattern are alike
    patterns = [tuple(map(_pattern, word)) for word in words]

    def step(state: State, token: int) -> State:
        if token == len(alphabet) - 1:
            return END if _accepts(state) else None
        if not isinstance(state, Read):
            return None
        key = state, patterns[token]
        if key not in known:
            known[key] = _read(state, patterns[token], deepest)
        return known[key]

    start: State = Read()
    return explore(start, step, _accepts, length, len(alphabet))


def _accepts(state: State) -> bool:
    return state == END or (isinstance(state, Read) and state.whole)


def _pattern(symbol: str) -> str:
    """What the grammar sees of a symbol: all atoms are alike to it, and all bonds."""
    if symbol in "()" or symbol[-1].isdigit():
        return symbol
    return "bond" if symbol in BONDS else "atom"


def _read(state: Read | None, pattern: Sequence[str], deepest: int) -> Read | None:
    for kind in pattern:
        state = None if state is None else _after(state, kind, deepest)
    return state


def _after(state: Read, kind: str, deepest: int) -> Read | None:
    """What was read with one more symbol; None if it may not follow."""
    follows = {"(": ("atom", ")"), ")": ("atom",), "bond": ("atom", "(", ")")}
    if kind == "atom":
        return replace(state, last="atom")
    if kind in follows and state.last not in follows[kind]:
        return None
    if kind == "bond":
        return replace(state, last="bond" if state.last == "atom" else "bond to atom")
    if kind == "(":
        return None if state.depth == deepest else replace(state, last="(", depth=state.depth + 1)
    if kind == ")":
        return None if state.depth == 0 else replace(state, last=")", depth=state.depth - 1)
    return replace(state, last="atom", rings=state.rings ^ {kind}) if state.last in ("atom", "bond") else None
