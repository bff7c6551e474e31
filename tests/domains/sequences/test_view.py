import itertools
import math
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from difftilt.data.vocabulary import DNA, PROTEIN, Vocabulary, all_sequences, encode
from difftilt.domains.sequences import view as sequences
from difftilt.domains.sequences.view import (
    diversity,
    entropy,
    information,
    kmer_correlation,
    word_length,
    write_logo,
)
from difftilt.evaluation.evaluate import ScoredSamples, write_table


def drawn(n: int, length: int = 6, categories: int = 4, seed: int = 0, law: int = 99) -> torch.Tensor:
    """Tokens from a different distribution at each position."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(length, categories, generator=torch.Generator().manual_seed(law)) ** 3
    return torch.multinomial(weights, n, replacement=True, generator=generator).T


def seen(sample: torch.Tensor) -> ScoredSamples:
    n = len(sample)
    reward = torch.linspace(-1, 1, n, dtype=torch.float64)
    return ScoredSamples(sample, reward, reward.abs(), {"gold binding": reward**2}, alpha=0.1)


def hamming(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a != b).double().mean().item()


def correlation(a: torch.Tensor, b: torch.Tensor, k: int) -> float:
    """By words and loops."""
    counts = []
    for x in (a, b):
        words = [tuple(row[i : i + k]) for row in x.tolist() for i in range(x.shape[1] - k + 1)]
        counts.append([words.count(word) / len(words) for word in itertools.product(range(4), repeat=k)])
    return torch.corrcoef(torch.tensor(counts, dtype=torch.float64))[0, 1].item()


@pytest.mark.parametrize("k", [1, 3])
def test_kmer_correlation_is_what_its_definition_says(k):
    a, b = drawn(20), drawn(30, length=9, seed=1)
    assert kmer_correlation(a, b, 4, k).value == pytest.approx(correlation(a, b, k), abs=1e-12)
    assert kmer_correlation(a, a.flip(0), 4, k).value == pytest.approx(1)
    assert kmer_correlation(a, b, 5, k).value != pytest.approx(correlation(a, b, k), abs=1e-3)


def test_kmers_end_where_sequences_do():
    words = Vocabulary(tuple(DNA), 2, 5)
    a, b = (words.encode(texts) for texts in (["ACGTA", "ACG", "AC"], ["ACG", "GTAC", "CG", "TT"]))
    pairs = ["".join(pair) for pair in itertools.product(DNA, repeat=2)]
    counts = [
        [sum(text[i:].startswith(pair) for text in texts for i in range(4)) for pair in pairs]
        for texts in (["ACGTA", "ACG", "AC"], ["ACG", "GTAC", "CG", "TT"])
    ]
    expected = torch.corrcoef(torch.tensor(counts).double())[0, 1].item()
    assert kmer_correlation(a, b, 4, 2, end=True).value == pytest.approx(expected)
    assert [word_length(words), word_length(Vocabulary(tuple(DNA), 1, 2))] == [3, 2]


def test_kmers_read_in_one_direction():
    a, b = encode(["ACG"] * 3, DNA), encode(["GCA"] * 3, DNA)
    assert kmer_correlation(a, b, 4).value == pytest.approx(-1 / 63)
    assert kmer_correlation(a, b, 4, k=1).value == pytest.approx(1)


def test_words_that_are_all_as_frequent_have_no_correlation():
    assert math.isnan(kmer_correlation(all_sequences(2, 3), drawn(9, categories=2), 2).value)


def test_diversity_is_the_mean_over_pairs():
    x = drawn(12)
    pairs = [hamming(a, b) for a, b in itertools.combinations(x, 2)]
    assert diversity(x).value == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert diversity(x[:1].expand(5, -1)).value == 0
    assert diversity(encode(["AAAA", "CCCC", "GGGG"], DNA)).value == 1


def test_the_error_of_the_diversity_is_the_jackknifes():
    x = drawn(12)
    each = [diversity(torch.cat([x[:i], x[i + 1 :]])).value for i in range(len(x))]
    without = torch.tensor(each, dtype=torch.float64)
    error = ((len(x) - 1) / len(x) * (without - without.mean()).square().sum()).sqrt()
    assert diversity(x).se == pytest.approx(error.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("metric", "law", "ratio"),
    [
        (lambda x, y: diversity(x), 99, 1),
        (lambda x, y: kmer_correlation(x, y, 4), 5, 1),
        (lambda x, y: kmer_correlation(x, y, 4), 99, 2**0.5),
    ],
    ids=["diversity", "kmers", "kmers of equal distributions"],
)
def test_errors_are_the_scatter_over_repetitions(metric, law, ratio):
    pairs = [(drawn(150, seed=seed), drawn(250, seed=1000 + seed, law=law)) for seed in range(200)]
    found = [metric(*pair) for pair in pairs]
    scatter = torch.tensor([estimate.value for estimate in found]).std().item()
    mean = sum(estimate.se for estimate in found) / len(found)
    assert mean / scatter == pytest.approx(ratio, rel=0.15)


def test_entropy_and_information_are_in_bits():
    x = encode(["AAA", "AAC", "ACG", "ACT"], DNA)
    assert entropy(x, 4).tolist() == pytest.approx([0, 1, 2])
    assert entropy(x, 20).tolist() == pytest.approx([0, 1, 2])
    many = x.repeat(10_000, 1)
    assert information(many, 4).tolist() == pytest.approx([2, 1, 0], abs=1e-3)
    assert information(many, 20)[0].item() == pytest.approx(math.log2(20), abs=1e-3)


def test_the_information_of_a_few_sequences_is_no_more_than_that_of_many():
    """Random letters have none; uncorrected, 40 of them would show 0.054 bits on average."""
    x = torch.randint(4, (40, 4000), generator=torch.Generator().manual_seed(0))
    corrected = 2 - 3 / (80 * math.log(2)) - entropy(x, 4)
    assert corrected.mean().item() == pytest.approx(0, abs=0.003)
    assert (2 - entropy(x, 4)).mean().item() > 0.05
    assert information(x, 4).tolist() == pytest.approx(corrected.clamp(min=0).tolist())


def test_a_drawing_is_a_fasta_file_and_a_picture(tmp_path: Path):
    sample = encode(["ACGT", "TTTT", "GATC"], DNA)
    one_hot = torch.nn.functional.one_hot(sample, 4).float()
    for name, x in (("tokens", sample), ("relaxed", one_hot)):
        sequences.draw(seen(x), tmp_path / "samples" / name, DNA)
    lines = (tmp_path / "samples" / "tokens.fasta").read_text().splitlines()
    assert lines[1::2] == ["ACGT", "TTTT", "GATC"]
    assert lines[0] == ">1 reward=-1 kl_nats=1 gold_binding=1"
    assert lines[2] == ">2 reward=0 kl_nats=0 gold_binding=0"
    files = {path.name: path.read_bytes() for path in (tmp_path / "samples").iterdir()}
    assert sorted(files) == ["relaxed.fasta", "relaxed.png", "tokens.fasta", "tokens.png"]
    assert files["tokens.png"] == files["relaxed.png"]
    with Image.open(tmp_path / "samples" / "tokens.png") as image:
        assert image.width >= 600


def test_a_table_may_begin_with_the_samples(tmp_path: Path):
    write_table(tmp_path / "a.csv", seen(drawn(2)), ["ACG", "TT,T"])
    rows = (tmp_path / "a.csv").read_text().splitlines()
    assert rows[0] == "sample,reward,kl_nats,gold binding"
    assert rows[1:] == ["ACG,-1.0,1.0,1.0", '"TT,T",1.0,1.0,1.0']
    with pytest.raises(ValueError, match="zip"):
        write_table(tmp_path / "a.csv", seen(drawn(2)), ["ACG"])
    assert (tmp_path / "a.csv").read_text().splitlines() == rows
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture
def logos(monkeypatch) -> list:
    """What logomaker is asked to draw."""
    logomaker = pytest.importorskip("logomaker")
    asked, real = [], logomaker.Logo

    def logo(table, **settings):
        asked.append((table, settings["color_scheme"], settings["ax"]))
        return real(table, **settings)

    monkeypatch.setattr(logomaker, "Logo", logo)
    return asked


def test_letters_of_a_logo_are_as_high_as_their_share_of_the_information(tmp_path: Path, logos):
    x = drawn(200, length=53)
    sequences.write_logo(tmp_path / "a.png", x, DNA)
    assert [len(table) for table, *_ in logos] == [18, 18, 17]
    assert [position for table, *_ in logos for position in table.index] == list(range(1, 54))
    heights = torch.cat([torch.tensor(table.to_numpy()) for table, *_ in logos])
    assert heights.sum(1).tolist() == pytest.approx(information(x, 4).tolist(), abs=1e-6)
    shares = torch.stack([(x == k).double().mean(0) for k in range(4)], 1)
    expected = shares * heights.sum(1, keepdim=True)
    assert heights.flatten().tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-6)
    assert {axes.get_ylim() for *_, axes in logos} == {(0, 2)}
    assert logos[-1][2].get_xlabel() == "position"
    assert logos[0][2].get_ylabel() == "information, bits"


def test_a_logo_s_scale_follows_what_stands_out(tmp_path: Path, logos):
    torch.manual_seed(0)
    for share, top in ((1.0, 2), (0.4, 0.5)):
        x = torch.randint(4, (1000, 3))
        x[: round(share * len(x)), 1] = 2
        sequences.write_logo(tmp_path / "a.png", x, DNA)
        assert logos[-1][2].get_ylim() == (0, top)


def test_the_logo_shows_the_best(tmp_path: Path, logos):
    x = drawn(100, length=3)
    x[::4, 1] = 2
    seen = ScoredSamples(x, torch.zeros(100), torch.zeros(100), {}, 1.0)
    seen.reward[::4] = 1
    sequences.draw(seen, tmp_path / "a", DNA, best=0.25)
    heights = torch.tensor(logos[-1][0].to_numpy())
    assert heights.sum(1).tolist() == pytest.approx(information(x[::4], 4).tolist(), abs=1e-6)
    assert logos[-1][2].get_title() == "the 25 of 100 samples with the highest rewards"


def test_colours_tell_bases_and_the_chemistry_of_amino_acids(tmp_path: Path, logos):
    alphabets = ("ACGU", PROTEIN, "ACDX")
    for alphabet in alphabets:
        sequences.write_logo(tmp_path / "a.png", drawn(20, 3, len(alphabet)), alphabet)
    bases, residues, odd = (colours for _, colours, _ in logos)
    assert len(set(bases.values())) == 4
    assert residues["K"] == residues["R"] != residues["D"] == residues["E"] != residues["L"]
    assert set(residues) >= set(PROTEIN) and odd["X"] not in residues.values()
    keys = [
        [text.get_text() for key in axes.figure.legends for text in key.get_texts()] for *_, axes in logos
    ]
    assert keys[0] == [] and "hydrophobic" in keys[1]


@pytest.mark.parametrize("alphabet", ["ACGU", PROTEIN])
def test_without_logomaker_the_same_letters_stand_in_the_same_places(monkeypatch, alphabet):
    pytest.importorskip("logomaker")
    heights = torch.rand(7, len(alphabet), generator=torch.Generator().manual_seed(0))

    def letters() -> torch.Tensor:
        """Corners and colours of the letters, from the left and from below."""
        axes = Figure().add_subplot()
        sequences._draw_line(axes, heights, alphabet, 1, 7, 20.0)
        boxes = [(patch.get_path().get_extents(), patch.get_facecolor()) for patch in axes.patches]
        boxes.sort(key=lambda drawn: (round((drawn[0].x0 + drawn[0].x1) / 2), drawn[0].y0))
        return torch.tensor([(*box.extents, *colour) for box, colour in boxes])

    library = letters()
    monkeypatch.setattr(sequences, "find_spec", lambda name: None)
    assert len(library) == heights.numel()
    assert torch.allclose(letters(), library, atol=1e-3)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda x: kmer_correlation(x, x, 4, k=7),
            "k must be 1 to 6, the length of the sequences, but got 7",
        ),
        (lambda x: kmer_correlation(x, x, 2), "tokens must be 0 to 1, but got 0 to 3"),
        (lambda x: entropy(x + 1, 4), "tokens must be 0 to 3, but got 1 to 4"),
        (lambda x: diversity(x[:2]), "3 or more samples are needed here, but got 2"),
        (lambda x: entropy(x[:0], 4), "1 or more samples are needed here, but got 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call(drawn(30))


@pytest.mark.filterwarnings("error")
def test_a_logo_without_information_is_drawn_without_a_warning(tmp_path):
    even = torch.arange(4)[:, None].expand(4, 8)
    assert information(even, 4).max() == 0
    write_logo(tmp_path / "even.png", even, "ACGT")
    assert (tmp_path / "even.png").stat().st_size > 1000
