"""Automata against what they stand for: words searched as text, letters counted, every short sequence."""

import itertools
import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difftilt.networks.automaton import LARGEST, Automaton, both, count_range, forbid, gc_range

DNA, RNA, PROTEIN = "ACGT", "ACGU", "ACDEFGHIKLMNPQRSTVWY"


def words(alphabet, length):
    return ["".join(letters) for letters in itertools.product(alphabet, repeat=length)]


def accepted(automaton, alphabet):
    every = words(alphabet, automaton.length)
    return {word for word in every if automaton.accepts([alphabet.index(letter) for letter in word])}


@st.composite
def machines(draw):
    """Moves and ends of any automaton of two letters."""
    states = draw(st.integers(1, 5))
    state = st.integers(0, states - 1)
    moves = draw(st.lists(st.tuples(state, state), min_size=states, max_size=states))
    ends = draw(st.lists(st.booleans(), min_size=states, max_size=states))
    return tuple(moves), tuple(ends)


@pytest.mark.parametrize(
    ("motifs", "pattern"),
    [
        (["GAT"], "GAT"),
        (["AA", "ACAC", "CA"], "AA|CA"),
        (["ATATA"], "ATATA"),
        (["RY"], "[AG][CT]"),
        (["GNC", "SWSWS"], "G.C|[CG][AT][CG][AT][CG]"),
        (["BDHV"], "[CGT][AGT][ACT][ACG]"),
        (["KM"], "[GT][AC]"),
    ],
)
def test_forbidden_motifs_are_those_that_a_search_finds(motifs, pattern):
    for alphabet, code in ((DNA, "T"), (RNA, "U"), ("TGAC", "T")):
        told = [motif.replace("T", code) for motif in motifs]
        searched = re.compile(pattern.replace("T", code))
        expected = {word for word in words(alphabet, 5) if not searched.search(word)}
        assert accepted(forbid(told, 5, alphabet), alphabet) == expected


def test_the_other_strand_is_searched_as_well():
    for alphabet, found in ((DNA, "AAC|GTT|GAR|YTC"), (RNA, "AAC|GUU|GAR|YUC")):
        pattern = re.compile(found.replace("R", "[AG]").replace("Y", "[CTU]"))
        expected = {word for word in words(alphabet, 5) if not pattern.search(word)}
        assert accepted(forbid(["AAC", "GAR"], 5, alphabet, both_strands=True), alphabet) == expected
    palindrome = forbid(["GAATTC"], 8, DNA)
    assert forbid(["GAATTC"], 8, DNA, both_strands=True) == palindrome
    assert len(palindrome.moves) == 7  # what was read of it, and found


def test_letters_of_other_alphabets_stand_for_themselves():
    assert forbid(["NRS"], 4, PROTEIN).accepts([PROTEIN.index(letter) for letter in "AAAA"])
    assert len(accepted(forbid(["NR"], 2, "NRS"), "NRS")) == 8


def test_counts():
    expected = {word for word in words(DNA, 5) if 2 <= word.count("G") + word.count("C") <= 3}
    assert accepted(count_range("GC", 2, 3, 5, DNA), DNA) == expected
    assert accepted(gc_range(0.4, 0.6, 5, DNA), DNA) == expected
    assert accepted(gc_range(0.3, 0.7, 5, DNA), DNA) == expected  # no count lies between
    assert accepted(count_range("G", 0, 99, 3, DNA), DNA) == set(words(DNA, 3))


def test_shares_that_floats_miss_by_a_hair_count():
    assert 0.07 * 100 > 7  # and 0.58 * 50 < 29
    assert gc_range(0.07, 0.29, 100, DNA) == count_range("CG", 7, 29, 100, DNA)
    assert gc_range(0.1, 0.58, 50, RNA) == count_range("CG", 5, 29, 50, RNA)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(machines(), machines())
def test_both_accepts_what_each_does(first, second):
    first, second = (Automaton(moves, ends, 5) for moves, ends in (first, second))
    joint = both(first, second)
    assert accepted(joint, "ab") == accepted(first, "ab") & accepted(second, "ab")
    assert joint == both(second, first)  # the smallest automaton of one meaning is one automaton
    assert both(joint, first) == joint


@settings(max_examples=60, deadline=None, derandomize=True)
@given(machines())
def test_no_smaller_automaton_accepts_the_same(machine):
    """Its states are as many as there are ways to go on (Myhill and Nerode)."""
    automaton = Automaton(machine[0], machine[1], 5)
    reached, tails = {0}, [tail for length in range(6) for tail in itertools.product((0, 1), repeat=length)]
    for _ in automaton.moves:
        reached |= {to for state in reached for to in automaton.moves[state]}

    def ends_well(state, tail):
        for token in tail:
            state = automaton.moves[state][token]
        return automaton.accepting[state]

    futures = {tuple(ends_well(state, tail) for tail in tails) for state in reached}
    assert len(both(automaton, automaton).moves) == len(futures)


def test_a_product_stays_small():
    sites = forbid(["GAATTC", "GGATCC", "AAGCTT", "GCGGCCGC"], 50, DNA, both_strands=True)
    share = gc_range(0.4, 0.6, 50, DNA)
    assert (len(sites.moves), len(share.moves)) == (21, 32)
    assert len(both(sites, share).moves) == 541


def test_a_long_gap_is_no_list_of_words():
    spaced = forbid(["GCCNNNNNGGC"], 12, DNA)  # BglI
    assert not spaced.accepts([DNA.index(letter) for letter in "AGCCTTTTTGGC"])
    assert spaced.accepts([DNA.index(letter) for letter in "AGCCTTTTTGGA"])
    assert len(spaced.moves) < 100
    with pytest.raises(ValueError, match=f"more than {LARGEST} states"):
        forbid(["A" + 30 * "N" + "A"], 40, DNA)


def test_accepting_needs_the_length():
    assert forbid(["AC"], 3, DNA).accepts([0, 0, 1]) is False
    assert forbid(["AC"], 3, DNA).accepts([0, 2, 1]) is True
    assert forbid(["AC"], 3, DNA).accepts([0, 2]) is False


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: forbid(["GAXT"], 8, DNA), r"'GAXT' has letters \['X'\], but the alphabet is 'ACGT'"),
        (lambda: forbid(["GAUT"], 8, RNA), r"letters \['T'\]"),
        (lambda: forbid(["gaat"], 8, DNA), r"letters \['a', 'g', 't'\]"),
        (lambda: forbid(["GAATTC"], 5, DNA), "has 6 letters, but the sequences have 5"),
        (lambda: forbid(["A", ""], 5, DNA), "motif '' has 0 letters"),
        (lambda: forbid("GAATTC", 8, DNA), "needs a list of motifs such as .* but got 'GAATTC'"),
        (lambda: forbid([], 8, DNA), r"but got \[\]"),
        (lambda: forbid(["A"], 8, "ACGA"), "each letter once, but got 'ACGA'"),
        (lambda: forbid(["WW"], 8, PROTEIN, both_strands=True), "only nucleotides have a second strand"),
        (lambda: gc_range(0.2, 0.4, 8, PROTEIN), "only nucleotides have a share of G and C"),
        (lambda: gc_range(0.6, 0.4, 8, DNA), "0 <= low <= high <= 1, but got 0.6 to 0.4"),
        (lambda: gc_range(40, 60, 8, DNA), "0 <= low <= high <= 1, but got 40 to 60"),
        (lambda: gc_range(0.3, 0.35, 8, DNA), "no number of G and C among 8 letters"),
        (lambda: gc_range(math.nan, 0.5, 8, DNA), "but got nan to 0.5"),
        (lambda: count_range("XG", 1, 2, 8, DNA), r"letters \['X'\] are not in the alphabet"),
        (lambda: count_range("G", 3, 2, 8, DNA), "0 <= low <= high"),
        (lambda: count_range("G", 9, 9, 8, DNA), "low <= 8, but got 9 to 9"),
        (lambda: both(gc_range(0, 1, 8, DNA), gc_range(0, 1, 9, DNA)), "8 tokens of 4 kinds, the other on 9"),
        (lambda: Automaton(((0, 1),), (True,), 3), "lead to 0 to 0 only"),
        (lambda: Automaton(((0, 1), (0,)), (True, False), 3), r"got 2 rows of lengths \[1, 2\]"),
        (lambda: Automaton((), (), 3), "0 rows"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
