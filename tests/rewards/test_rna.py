import itertools
import math
import sys

import pytest
import RNA as vienna  # noqa: N811
import torch

from difftilt.conditions import unconditional
from difftilt.data.vocabulary import encode
from difftilt.guard import Guard
from difftilt.rewards.rna import RNA, minimum_free_energy, target_structure

HAIRPIN, TARGET = "GGGGAAAACCCC", "((((....))))"
OPEN = "AAAAAAAAAAAA"
GAS = 1.98717e-3 * 310.15  # kcal/mol, ViennaRNA's own constants at 37 degrees


def words(*lines: str, alphabet: str = RNA) -> torch.Tensor:
    return encode(lines, alphabet)


def score(reward, *lines: str, alphabet: str = RNA) -> list[float]:
    return reward(words(*lines, alphabet=alphabet), unconditional(len(lines))).tolist()


def structures(word: str):
    """Every secondary structure of a short RNA, in dot-bracket notation."""
    bonds = {"AU", "UA", "GC", "CG", "GU", "UG"}
    if not word:
        yield ""
        return
    for rest in structures(word[1:]):
        yield "." + rest
    for i in range(4, len(word)):
        if word[0] + word[i] in bonds:
            for inner, outer in itertools.product(structures(word[1:i]), structures(word[i + 1 :])):
                yield f"({inner}){outer}"


def pairs(structure: str) -> list[int]:
    """The partner of every letter, itself if it has none."""
    partner, opened = list(range(len(structure))), []
    for i, sign in enumerate(structure):
        if sign == "(":
            opened.append(i)
        elif sign == ")":
            partner[i], partner[opened[-1]] = opened[-1], i
            opened.pop()
    return partner


def energy(word: str, structure: str) -> float:
    return vienna.fold_compound(word).eval_structure(structure)


def test_the_minimum_is_over_all_structures():
    least = min(energy(HAIRPIN, structure) for structure in structures(HAIRPIN))
    assert least < -3
    assert score(minimum_free_energy(), HAIRPIN, OPEN) == pytest.approx([-least, 0])
    assert score(minimum_free_energy(aim="unfold"), HAIRPIN, OPEN) == pytest.approx([least, 0])


def test_the_defect_is_the_expected_share_of_letters_paired_otherwise():
    word = "GGGAAAACCCA"
    target = "(((....)))."
    every = list(structures(word))
    weight = [math.exp(-energy(word, structure) / GAS) for structure in every]
    other = [sum(a != b for a, b in zip(pairs(s), pairs(target), strict=True)) / len(word) for s in every]
    defect = sum(w * d for w, d in zip(weight, other, strict=True)) / sum(weight)
    assert 0.01 < defect < 0.99
    assert score(target_structure(target, measure="defect"), word) == pytest.approx([-defect], rel=1e-3)


def test_the_distance_is_the_share_of_pairs_that_differ():
    reward = target_structure(TARGET)
    assert score(reward, HAIRPIN, OPEN) == pytest.approx([0, -4 / 12])
    assert score(target_structure("." * 12), HAIRPIN, OPEN) == pytest.approx([-4 / 12, 0])
    assert score(target_structure("(((......)))"), HAIRPIN) == pytest.approx([-1 / 12])


def test_rewards_say_which_of_two_is_better():
    better = "GGGGAAAACCCC", "GCGAAAACGCAA"
    for reward in (
        target_structure(TARGET),
        target_structure(TARGET, measure="defect"),
        minimum_free_energy(),
    ):
        first, second = score(reward, *better)
        assert first > second


@pytest.mark.parametrize("reward", [minimum_free_energy, lambda alphabet: target_structure(TARGET, alphabet)])
def test_t_is_u_and_letters_may_come_in_any_order(reward):
    """Also in the loop CUUCGG, whose bonus ViennaRNA itself gives to U only."""
    rna = score(reward(RNA), "GGACUUCGGUCC", "GUGUAAAAGCGC")
    for alphabet in ("ACGT", "TGCA"):
        dna = score(reward(alphabet), "GGACTTCGGTCC", "GTGTAAAAGCGC", alphabet=alphabet)
        assert dna == rna


def test_relaxed_samples_are_read_as_their_letters():
    sample = words(HAIRPIN, OPEN)
    soft = torch.nn.functional.one_hot(sample, 4).float().requires_grad_()
    answer = Guard(minimum_free_energy())(soft, unconditional(2))
    assert not answer.requires_grad
    assert answer.tolist() == score(minimum_free_energy(), HAIRPIN, OPEN)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("((((....)))", "opens a pair at position 1 that it never closes"),
        ("....))....((", "closes a pair at position 5 that was never opened"),
        ("[[[[....]]]]", r"written with \( \) and \. but got '\[' at position 1"),
        ("(((())))", "positions 4 and 5 of the structure are too near to pair"),
        ("((..))", "positions 2 and 5"),
        ("", "the structure is empty"),
    ],
)
def test_a_bad_structure_is_refused_in_one_sentence(target, said):
    with pytest.raises(ValueError, match=said) as error:
        target_structure(target)
    assert "\n" not in str(error.value)


def test_the_tightest_hairpin_is_allowed():
    target_structure("((...))")


def test_what_does_not_fold_is_refused():
    with pytest.raises(ValueError, match="an empty RNA does not fold"):
        minimum_free_energy()(torch.zeros(2, 0, dtype=torch.long), unconditional(2))
    with pytest.raises(ValueError, match=r"has 12 letters, but got samples of 4"):
        target_structure(TARGET)(words("ACGU"), unconditional(1))
    with pytest.raises(ValueError, match="the alphabet holds N, X"):
        minimum_free_energy("ACGUNX")
    with pytest.raises(ValueError, match="token 4"):
        minimum_free_energy()(torch.tensor([[0, 4]]), unconditional(1))


def test_without_viennarna_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "RNA", None)
    with pytest.raises(ImportError, match=r"pip install 'difftilt\[rna\]'") as error:
        minimum_free_energy()
    assert "\n" not in str(error.value)
