"""Text to tokens and back, and one sentence for every row that is no sequence."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.data.vocabulary import DNA, PROTEIN, all_sequences, encode, place_values, spell

words = st.integers(1, 6).flatmap(
    lambda length: st.lists(st.text(PROTEIN, min_size=length, max_size=length), min_size=1, max_size=20)
)


@given(words)
def test_spelling_undoes_encoding(lines: list[str]):
    tokens = encode(lines, PROTEIN)
    assert tokens.shape == (len(lines), len(lines[0]))
    assert spell(tokens, PROTEIN) == lines


@given(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1))
def test_any_alphabet_will_do(rows: list[list[int]]):
    tokens = torch.tensor(rows)
    assert torch.equal(encode(spell(tokens, "aβ\U0001f9ec"), "aβ\U0001f9ec"), tokens)


def test_a_token_is_its_letters_place():
    assert encode(["ACGT", "TTCA"], DNA).tolist() == [[0, 1, 2, 3], [3, 3, 1, 0]]


@given(st.integers(2, 4), st.integers(1, 4))
def test_sequences_are_in_the_order_of_their_place(categories: int, length: int):
    every = all_sequences(categories, length)
    places = (every * place_values(categories, length)).sum(1)
    assert torch.equal(places, torch.arange(categories**length))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "there are no sequences"),
        (["ACG", "ACN"], "row 2 holds 'N' at position 3, but the letters are ACGT"),
        (["ACG", "AcG"], "row 2 holds 'c' at position 2"),
        (["ACG", "AUG"], "row 2 holds 'U' at position 2"),
        (["ACG", "A\ud800G"], "row 2 holds '\\ud800' at position 2"),
        (["ACG", "ACG", "AC"], "row 3 (AC) has 2 letters, but 3 are expected"),
        (["ACG", ""], "row 2 is empty"),
        (["ACG", "   "], "row 2 is empty"),
        (["ACG", "TTT", "ACG"], "row 3 (ACG) repeats row 1"),
    ],
    ids=["none", "unknown", "small", "rna", "surrogate", "short", "empty", "blank", "twice"],
)
def test_the_first_bad_row_is_named(lines: list[str], message: str):
    with pytest.raises(ValueError) as error:
        encode(lines, DNA, unique=True)
    assert str(error.value).startswith(message)


def test_rows_count_from_where_the_file_says():
    with pytest.raises(ValueError, match="row 3 holds 'N'"):
        encode(["ACG", "ACN"], DNA, first=2)
    with pytest.raises(ValueError, match=r"row 2 .* has 3 letters, but 4 are expected"):
        encode(["ACG", "ACC"], DNA, length=4, first=2)


def test_repeated_rows_are_fine_unless_refused():
    assert len(encode(["ACG", "ACG"], DNA)) == 2


@pytest.mark.parametrize("token", [-1, 4])
def test_a_token_without_a_letter_is_named(token: int):
    with pytest.raises(ValueError, match=f"row 2 holds token {token} at position 3"):
        spell(torch.tensor([[0, 1, 2], [0, 0, token]]), DNA)


WORDS = ["ACGT", "TTCA"]


@pytest.mark.parametrize(
    "lines",
    [tuple(WORDS), np.array(WORDS), np.array(WORDS, object), pd.Series(WORDS, index=[5, 6]), iter(WORDS)],
    ids=lambda lines: type(lines).__name__,
)
def test_words_come_in_any_container(lines: Any):
    assert encode(lines, DNA).tolist() == [[0, 1, 2, 3], [3, 3, 1, 0]]


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA])
@pytest.mark.parametrize("column", [list, pd.Series, lambda rows: np.array(rows, object)])
def test_a_missing_cell_is_named_by_its_row(missing: Any, column: Any):
    with pytest.raises(ValueError, match="row 3 is missing"):
        encode(column(["ACGT", missing]), DNA, first=2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("ACGT", "got one text (ACGT), but a list"),
        (b"ACGT", "got one text"),
        ([b"ACGT"], "row 1 must be text, but got a bytes"),
        (["ACGT", 5], "row 2 must be text, but got a int (5)"),
        (np.array([["ACGT"]]), "row 1 must be text, but got a ndarray"),
    ],
)
def test_what_is_no_list_of_words_is_refused(lines: Any, message: str):
    with pytest.raises(ValueError) as error:
        encode(lines, DNA)
    assert str(error.value).startswith(message)


def test_tokens_come_as_arrays_and_lists_too():
    for tokens in ([[0, 1]], np.array([[0, 1]]), torch.tensor([[0, 1]], dtype=torch.uint8)):
        assert spell(tokens, DNA) == ["AC"]


@pytest.mark.parametrize("tokens", [torch.tensor([0, 1]), [[0], [0, 1]], torch.zeros(1, 2), [[None]], "AC"])
def test_what_is_no_rows_of_tokens_is_refused(tokens: Any):
    with pytest.raises(ValueError, match="tokens must be rows of whole numbers"):
        spell(tokens, DNA)
