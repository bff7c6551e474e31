"""Text in images: what is wanted, how far it is from what was read, and what is said of neither."""

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.rewards.text_image import LegibleText, edits, wanted_texts


@given(st.text("abc", max_size=6), st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_edits_are_a_distance(a, b, c):
    assert edits(a, b) == edits(b, a)
    assert (edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))
    assert edits(a, c) <= edits(a, b) + edits(b, c)


def test_known_distances():
    assert edits("kitten", "sitting") == 3 and edits("", "abc") == 3 and edits("abc", "acb") == 2


def test_the_wanted_text_is_a_column_or_in_quotes():
    assert wanted_texts({"prompt": ['a sign with "Open"', "a wall, “No Way” on it"]}) == ["Open", "No Way"]
    assert wanted_texts({"prompt": ['a sign with "Open"'], "text": ["Closed"]}) == ["Closed"]
    for cond in ({"prompt": ["a sign"]}, {"text": ["?!"]}, {"text": [3]}, {"none": [0]}):
        with pytest.raises(ValueError, match="needs a text to read for each image"):
            wanted_texts(cond)


def test_what_is_read_counts_by_letters(monkeypatch):
    seen = []

    def read(pixels):
        seen.append(pixels)
        return SimpleNamespace(txts=(("HELLO", " w0rld") if pixels.mean() > 100 else None))

    monkeypatch.setitem(sys.modules, "rapidocr", SimpleNamespace(RapidOCR=lambda: read))
    images = torch.stack([torch.ones(3, 8, 8), torch.ones(3, 8, 8), torch.zeros(3, 8, 8)])
    cond = {"text": ["Hello, World!", "abc", "Hello"]}
    score = LegibleText()(images, cond)
    torch.testing.assert_close(score, torch.tensor([0.9, 0.0, 0.0]))
    assert seen[0].shape == (8, 8, 3) and seen[0].max() == 255


def test_a_missing_reader_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match="needs rapidocr; install it with pip install rapidocr onnxruntime"):
        LegibleText()(torch.ones(1, 3, 8, 8), {"text": ["a"]})
