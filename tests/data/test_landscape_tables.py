"""Landscapes: every sequence's score, how it came from a measurement, and what models may learn from."""

import gzip
import hashlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.data.landscape import (
    EPSILON,
    SIX6,
    Landscape,
    load_landscape,
    make_landscape,
    read_gb1,
    read_tfbind8,
)
from difftilt.data.vocabulary import DNA, PROTEIN, encode, spell

WORDS = ["AA", "AB", "BA", "BB"]


@pytest.fixture(scope="module")
def six6() -> Landscape:
    return load_landscape("six6")


def mirrored(tokens: torch.Tensor) -> torch.Tensor:
    return 3 - tokens.flip(1)


def test_six6_is_small_and_what_it_was():
    made = SIX6.read_bytes()
    assert len(made) <= 300_000
    assert hashlib.sha256(made).hexdigest() == (
        "a7b2278253a18826aadac74b015ef0bcbed89f346e3aaadca522418f5237c622"
    )


def test_six6_has_every_8mer_from_0_to_1(six6: Landscape):
    assert six6.score.shape == (4**8,) and six6.score.dtype == torch.float64
    assert six6.measured.all()
    assert (six6.score.min(), six6.score.max()) == (0, 1)
    assert torch.equal(six6.index(six6.sequences()), torch.arange(4**8))


def test_six6_holds_the_published_e_scores(six6: Landscape):
    published = {"AAAAAAAA": 0.03, "AAAAAAAC": -0.12351, "GTTTTTTT": -0.12351, "TTTTAAAA": 0.18024}
    score = six6.lookup(encode(list(published), DNA), {}).double()
    expected = torch.tensor([(e + 0.47907) / (0.49105 + 0.47907) for e in published.values()])
    assert torch.allclose(score, expected.double(), atol=1e-6)  # the last digit of an E-score is 1e-5


def test_six6_cannot_tell_the_strands_apart(six6: Landscape):
    every = six6.sequences()
    assert torch.equal(six6.score[six6.index(mirrored(every))], six6.score)
    assert not torch.equal(six6.score[six6.index(every.flip(1))], six6.score)


def test_the_lower_half_keeps_both_strands(six6: Landscape):
    half = six6.lower_half()
    assert torch.equal(half, half.sort().values)
    assert torch.equal(six6.index(mirrored(six6.sequences()[half])).sort().values, half)
    rest = torch.ones(4**8, dtype=torch.bool)
    rest[half] = False
    assert six6.score[half].max() < six6.score[rest].min()
    assert len(half) == 4**8 // 2


@given(st.lists(st.integers(0, 3), min_size=4, max_size=9), st.data())
def test_the_lower_half_splits_no_tie_and_leaves_out_the_unmeasured(scores: list[int], data: st.DataObject):
    score = torch.tensor(scores, dtype=torch.float64)
    measured = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    measured[0] = True
    words = Landscape("x", "".join(map(str, range(len(scores)))), 1, score, measured, "")
    half, known = words.lower_half(), score[measured]
    assert measured[half].all()
    assert 2 * len(half) >= len(known)
    below = known < score[half].max()
    assert 2 * below.sum() < len(known)  # without the highest scores in it, it would be less than half
    assert len(half) == (known <= score[half].max()).sum()


def test_lookup_is_the_score_in_any_order(six6: Landscape):
    rows = torch.randperm(4**8, generator=torch.Generator().manual_seed(0))[:100]
    reward = six6.lookup(six6.sequences()[rows], {})
    assert reward.dtype == torch.float32
    assert torch.equal(reward, six6.score[rows].float())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(2, 7, dtype=torch.long), "sequences of 8 tokens, but got shape (2, 7)"),
        (torch.full((2, 8), 4), "row 1 holds token 4 at position 1, but the 4 letters are tokens 0 to 3"),
        (torch.full((2, 8), -1), "row 1 holds token -1"),
    ],
    ids=["short", "mask", "negative"],
)
def test_lookup_refuses_what_is_no_sequence(six6: Landscape, tokens: torch.Tensor, message: str):
    with pytest.raises(ValueError) as error:
        six6.lookup(tokens, {})
    assert message in str(error.value)


def test_scores_are_scaled_linearly():
    made = make_landscape("x", "AB", WORDS[::-1], [4.0, -1.0, 1.5, -6.0], "")
    assert made.score.tolist() == [0.0, 0.75, 0.5, 1.0]  # in the order of the sequences, not of the rows


@pytest.mark.parametrize(
    ("words", "scores", "message"),
    [
        ([*WORDS[:3], "BC"], [0.0, 1.0, 2.0, 3.0], "row 4 holds 'C' at position 2"),
        ([*WORDS[:3], "BBB"], [0.0, 1.0, 2.0, 3.0], "row 4 (BBB) has 3 letters"),
        ([*WORDS[:3], "AB"], [0.0, 1.0, 2.0, 3.0], "row 4 (AB) repeats row 2"),
        ([*WORDS[:3], ""], [0.0, 1.0, 2.0, 3.0], "row 4 is empty"),
        (WORDS, [0.0, 1.0, None, 3.0], "row 3 (BA) has no finite score (None)"),
        (WORDS, [0.0, 1.0, math.nan, 3.0], "row 3 (BA) has no finite score (nan)"),
        (WORDS, [0.0, math.inf, 2.0, 3.0], "row 2 (AB) has no finite score (inf)"),
        (WORDS, [0.0, 1.0, 2.0], "one score per sequence is needed, but got 4 sequences and 3 scores"),
        (WORDS, [2.0] * 4, "every score is 2"),
        (["AA", "BB"], [0.0, 1.0], "the landscape x has 2 holes, the first at AB"),
        (["A" * 50, "B" * 50], [0.0, 1.0], "a landscape lists all sequences, and 2^50 are too many"),
    ],
    ids=["letter", "length", "repeat", "empty", "none", "nan", "inf", "count", "flat", "holes", "huge"],
)
def test_bad_tables_are_refused_in_one_sentence(words: list[str], scores: list[float | None], message: str):
    with pytest.raises(ValueError) as error:
        make_landscape("x", "AB", words, scores, "")
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_holes_are_filled_only_on_request_and_marked():
    made = make_landscape("x", "AB", ["AB", "BB"], [3.0, 1.0], "", holes="lowest")
    assert made.score.tolist() == [0, 1, 0, 0]
    assert made.measured.tolist() == [False, True, False, True]
    assert made.lower_half().tolist() == [3]


GB1 = {"VDGV": 1.0, "ACDE": 0.0, "WWWW": 8.0, "CCCC": 0.25}


def gb1(folder: Path, rows: Mapping[str, object]) -> Path:
    path = folder / "gb1.csv"
    lines = [f"{word},{','.join(word)},{fitness}" for word, fitness in rows.items()]
    path.write_text("\n".join(["sequences,pos1,pos2,pos3,pos4,fitness", *lines]) + "\n")
    return path


def test_gb1_scores_are_log_fitness(tmp_path: Path):
    made = read_gb1(gb1(tmp_path, GB1))
    score = made.score[made.index(encode(list(GB1), PROTEIN))].tolist()
    nats = math.log((8 + EPSILON) / EPSILON)
    expected = [math.log((fitness + EPSILON) / EPSILON) / nats for fitness in GB1.values()]
    assert score == pytest.approx(expected, abs=1e-12)
    assert f"{nats:.3f} nats from the lowest to the highest" in made.note
    assert f"{math.log((1 + EPSILON) / EPSILON):.3f} from the lowest to wild type" in made.note


def test_gb1_tilts_by_a_power_of_fitness(tmp_path: Path):
    made, alpha = read_gb1(gb1(tmp_path, GB1)), 0.05
    wild, best = made.score[made.index(encode(["VDGV", "WWWW"], PROTEIN))].tolist()
    power = 1 / (alpha * math.log((8 + EPSILON) / EPSILON))
    assert math.exp((best - wild) / alpha) == pytest.approx(((8 + EPSILON) / (1 + EPSILON)) ** power)


def test_gb1_variants_without_a_measurement_are_marked(tmp_path: Path):
    made = read_gb1(gb1(tmp_path, GB1))
    assert made.score.shape == (20**4,) and made.measured.sum() == 4
    assert (made.score[~made.measured] == 0).all()
    assert "159996 variants were not measured and get the lowest score, 0" in made.note
    half = spell(made.sequences()[made.lower_half()], PROTEIN)
    assert half == ["ACDE", "CCCC"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (GB1 | {"AAAB": 1.0}, "row 6 holds 'B' at position 4"),
        (GB1 | {"AAA": 1.0}, "row 6 has 5 cells, but the header has 6"),
        (GB1 | {"AAAA": ""}, "row 6 has the fitness '', but a finite number of at least 0 is expected"),
        (GB1 | {"AAAA": "nan"}, "row 6 has the fitness 'nan'"),
        (GB1 | {"AAAA": "high"}, "row 6 has the fitness 'high'"),
        (GB1 | {"AAAA": -0.1}, "row 6 has the fitness '-0.1'"),
        ({}, "there are no rows below the header"),
    ],
    ids=["letter", "length", "empty", "nan", "word", "negative", "none"],
)
def test_bad_gb1_files_are_refused_by_row(tmp_path: Path, rows: Mapping[str, object], message: str):
    path = gb1(tmp_path, rows)
    with pytest.raises(ValueError) as error:
        read_gb1(path)
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.fixture(scope="module")
def pairs(six6: Landscape) -> list[str]:
    """The rows that were published for SIX6, from the table in the package."""
    every = six6.sequences()
    first = six6.index(every) <= six6.index(mirrored(every))
    words, mirrors = spell(every[first], DNA), spell(mirrored(every)[first], DNA)
    scores = (six6.score[first] * (0.49105 + 0.47907) - 0.47907).tolist()
    return [f"{w}\t{m}\t{s:.5f}\t0\t0" for w, m, s in zip(words, mirrors, scores, strict=True)]


def tfbind8(folder: Path, rows: list[str]) -> Path:
    path = folder / "six6.txt.gz"
    text = "\n".join(["8-mer\t8-mer\tE-score\tMedian\tZ-score", *rows])
    path.write_bytes(gzip.compress(text.encode(), 1))
    return path


def test_a_table_of_pairs_fills_the_landscape(tmp_path: Path, pairs: list[str], six6: Landscape):
    made = read_tfbind8("six6", tfbind8(tmp_path, pairs))
    assert torch.equal(made.score, six6.score)
    assert made.note == six6.note


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "the landscape six6 has 1 holes, the first at TTTTAAAA"),
        (
            lambda rows: ["AAAAAAAA\tTTTTTTTA\t0.1\t0\t0", *rows],
            "row 2: TTTTTTTA is not the reverse complement of AAAAAAAA",
        ),
        (lambda rows: [*rows[:9], rows[0]], "row 11 (AAAAAAAA) repeats row 2"),
        (
            lambda rows: [rows[0], "TTTTTTTT\tAAAAAAAA\t0.1\t0\t0"],
            "AAAAAAAA and its reverse complement have two E-scores in six6: keep one of them",
        ),
        (lambda rows: ["AAAAAAAA\tTTTTTTTT\t?\t0\t0"], "row 2 has the E-score '?'"),
    ],
    ids=["hole", "mirror", "repeat", "conflict", "number"],
)
def test_bad_tfbind8_files_are_refused(
    tmp_path: Path, pairs: list[str], change: Callable[[list[str]], list[str]], message: str
):
    path = tfbind8(tmp_path, change(pairs))
    with pytest.raises(ValueError) as error:
        read_tfbind8("six6", path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_landscape_that_is_not_here_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFFTILT_DATA", str(tmp_path))
    for name, dataset in (("pax6", "tfbind8"), ("gb1", "gb1")):
        with pytest.raises(ValueError, match=f"difftilt data fetch {dataset}, or .* import {dataset} PATH"):
            load_landscape(name)
    with pytest.raises(ValueError, match="no landscape 'pax7': valid are six6, pax6, egr2, gb1"):
        load_landscape("pax7")
