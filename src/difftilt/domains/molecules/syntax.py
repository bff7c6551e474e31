"""The grammar of SMILES as finite automata: branches and rings that are open, and bonds that atoms have left.

One machine reads all of it, but has some hundred thousand states. Two shadows of it are small: one forgets
bonds and keeps rings, the other forgets rings and keeps bonds. What the machine accepts, both accept.
Neither knows aromaticity, so of aromatic SMILES some that both accept are no molecules.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from difftilt.domains.molecules.tokens import SYMBOL
from difftilt.networks.automaton import Automaton, explore
from difftilt.rewards.molecule import read_or_none

BONDS = "-=#:/\\"
ORDER = {"=": 2, "#": 3}  # of bonds; all others count as single
ANY = 9  # bonds of an atom that are not counted: it is aromatic, or can have more than four
COUNTED = 2  # bonds left to an atom while a branch of it is read; more of them are not counted
NESTED = 3  # branches, the innermost ones, whose atoms' bonds are counted
ENDED, NEVER = -1, -2  # the states where nothing but the end can follow, and nothing at all
Kind = str | int  # of a symbol: itself, or of an atom how many bonds it can have


@dataclass(frozen=True)
class Read:
    """What matters of the symbols so far.

    Args:
        last: The last one; a ring's digit counts as the atom that it follows, and `bond` is one that may
            lead to a ring.
        branches: Of each open branch, the bonds left to the atom at which it begins.
        rings: The digits of the rings that are open.
        opened: The one of them that the last symbol opened.
        left: Bonds left to the atom that the next one is bound to.
        order: Of the bond to the next one.
    """

    last: Literal["nothing", "atom", "bond", "bond to atom", "(", "bond of branch", ")"] = "nothing"
    branches: tuple[int, ...] = ()
    rings: frozenset[str] = frozenset()
    opened: str = ""
    left: int = ANY
    order: int = 1

    @property
    def whole(self) -> bool:
        """Whether a molecule may end here."""
        return self.last == "atom" and not self.branches and not self.rings


@functools.lru_cache(8)
def smiles_syntax(alphabet: tuple[str, ...], length: int, deepest: int) -> Automaton:
    """The SMILES of one molecule, as RDKit writes it, and nothing after its end; bonds are not counted.

    Args:
        alphabet: What each token spells, that of the end last.
        length: Tokens per row.
        deepest: Branches that may be open at once.
    """

    def without_bonds(state: Read) -> Read:
        return replace(state, branches=(ANY,) * len(state.branches), left=ANY, order=1)

    return _shadow(alphabet, length, deepest, without_bonds)


@functools.lru_cache(8)
def smiles_valences(alphabet: tuple[str, ...], length: int, deepest: int) -> Automaton:
    """The same of which no atom has more bonds than RDKit lets it have, but whichever rings are open."""
    return _shadow(alphabet, length, deepest, lambda state: replace(state, rings=frozenset(), opened=""))


def any_text(alphabet: Sequence[str], length: int) -> Automaton:
    """One token or more, and nothing after the end, which the last token stands for."""

    def step(state: int, token: int) -> int:
        """From 0, without tokens, to 1."""
        if token == len(alphabet) - 1:
            return NEVER if state in (0, NEVER) else ENDED
        return 1 if state >= 0 else NEVER

    return explore(0, step, lambda state: state in (1, ENDED), length, len(alphabet))


def most_bonds(symbol: str) -> int:
    """The bonds that an atom can have, found by giving it fluorines; ANY if they are not counted."""
    if symbol.lstrip("[0123456789")[:1].islower():
        return ANY
    counts = [count for count in range(1, 6) if read_or_none(symbol + "(F)" * count) is not None]
    return counts[-1] if counts and counts[-1] <= 4 else ANY


def _shadow(alphabet: Sequence[str], length: int, deepest: int, forget: Callable[[Read], Read]) -> Automaton:
    spelled = [SYMBOL.findall(text) for text in alphabet[:-1]]
    found = {symbol: _kind(symbol) for word in spelled for symbol in word}
    kinds = list(dict.fromkeys(found.values()))
    words = [[kinds.index(found[symbol]) for symbol in word] for word in spelled]

    def after(state: Read | None, kind: int) -> Read | None:
        one = kinds[kind]
        if state is not None:
            state = _atom(state, one) if isinstance(one, int) else _sign(state, one, deepest)
        return state and forget(state)

    start: Read | None = Read()
    one = explore(start, after, lambda state: state is not None and state.whole, length, len(kinds))

    def step(state: int, token: int) -> int:
        if token == len(words):
            return ENDED if state == ENDED or (state >= 0 and one.accepting[state]) else NEVER
        if state < 0:
            return NEVER
        for kind in words[token]:
            state = one.moves[state][kind]
        return state

    return explore(
        0, step, lambda state: state == ENDED or (state >= 0 and one.accepting[state]), length, len(alphabet)
    )


def _kind(symbol: str) -> Kind:
    """All that the grammar sees of a symbol."""
    return symbol if symbol in "()" or symbol in BONDS or symbol[-1].isdigit() else most_bonds(symbol)


def _atom(state: Read, most: int) -> Read | None:
    """What was read with an atom that can have so many bonds; None if it may not follow."""
    if state.last == "nothing":
        return replace(state, last="atom", left=most)
    begins = state.last in ("(", "bond of branch")  # and leaves a bond to what follows the branch
    if state.left < state.order + begins or most < state.order:
        return None
    branches = state.branches
    if begins:
        known = (*branches[:-1], _less(state.left, state.order))
        counted = (bonds if bonds <= COUNTED else ANY for bonds in known[-NESTED:])
        branches = (ANY,) * (len(known) - NESTED) + tuple(counted)
    return replace(state, last="atom", branches=branches, opened="", left=_less(most, state.order), order=1)


def _sign(state: Read, sign: str, deepest: int) -> Read | None:
    """The same with a bond, a bracket or a ring's digit."""
    branches = state.branches
    if sign in BONDS:
        names = {"atom": "bond", "(": "bond of branch", ")": "bond to atom"}
        if state.last not in names:
            return None
        return replace(state, last=names[state.last], opened="", order=ORDER.get(sign, 1))
    if sign == "(":
        if state.last not in ("atom", ")") or state.left < 2 or len(branches) == deepest:
            return None
        return replace(state, last="(", branches=(*branches, ANY), opened="")
    if sign == ")":
        if state.last != "atom" or not branches:
            return None
        return replace(state, last=")", branches=branches[:-1], opened="", left=branches[-1])
    if state.last not in ("atom", "bond") or state.left < state.order or sign == state.opened:
        return None
    opened = "" if sign in state.rings else sign
    left = _less(state.left, state.order)
    return replace(state, last="atom", rings=state.rings ^ {sign}, opened=opened, left=left, order=1)


def _less(left: int, bonds: int) -> int:
    return left if left == ANY else left - bonds
