"""Sequences as people read them, FASTA and logos, and what sets of them are judged by."""

import math
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Patch, PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from torch import Tensor

from difftilt.data.atomic import atomic_file
from difftilt.data.vocabulary import END, Vocabulary, spell
from difftilt.evaluation.estimate import Estimate, jackknife
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.evaluation.metrics import at_least
from difftilt.experiment.job import View
from difftilt.shapes import PerLetter, Sequences, Some
from difftilt.transition import tokens

GROUPS = 100  # parts of a set that the jackknife leaves out in turn
LETTERS_PER_LINE = 25  # of a logo
SCALES = (0.05, 0.1, 0.2, 0.5, 1)  # in bits, that a logo is drawn on if nothing stands out; else all bits
BASES = {"A": "#008000", "C": "#0000d0", "G": "#f0a000", "TU": "#d00000"}
RESIDUES = {  # by chemistry, as WebLogo has it
    "GSTYC": ("polar", "#008000"),
    "NQ": ("neutral", "#8000a0"),
    "KRH": ("basic", "#0000d0"),
    "DE": ("acidic", "#d00000"),
    "AVLIPWFM": ("hydrophobic", "#000000"),
}


def sequence_view(alphabet: Sequence[str], best: float = 1.0) -> View:
    """How sequences of tokens look: as text, as FASTA and as a logo.

    Args:
        alphabet: What each token spells; see `Vocabulary.alphabet`.
        best: As for `draw`.
    """
    return View(
        spell=lambda sample: spell(tokens(sample), alphabet),
        draw=partial(draw, alphabet=alphabet, best=best),
        diversity=lambda sample: diversity(sample).value,
    )


def draw(seen: ScoredSamples, path: Path, alphabet: Sequence[str], best: float = 1.0) -> None:
    """Writes samples as FASTA, with scores in the headers, and their logo, beginning with a path.

    Args:
        best: Share of the samples, those of the highest rewards, that the logo shows, in (0, 1].
    """
    write_fasta(path.with_suffix(".fasta"), seen, alphabet)
    shown = seen.reward.argsort(descending=True)[: max(round(best * len(seen.reward)), 1)]
    title = "" if best == 1 else f"the {len(shown)} of {len(seen.reward)} samples with the highest rewards"
    write_logo(path.with_suffix(".png"), tokens(seen.sample)[shown], alphabet, title)


def write_fasta(path: Path, seen: ScoredSamples, alphabet: Sequence[str]) -> None:
    """Writes `>1 reward=0.71 kl_nats=1.2` and the sequence below it, for every sample."""
    scores = {name.replace(" ", "_"): x.tolist() for name, x in seen.scores().items()}
    with atomic_file(path) as part, part.open("w", encoding="utf-8") as file:
        for i, word in enumerate(spell(tokens(seen.sample), alphabet)):
            header = " ".join(f"{name}={values[i]:.6g}" for name, values in scores.items())
            file.write(f">{i + 1} {header}\n{word}\n")


def write_logo(path: Path, sequences: Sequences, alphabet: Sequence[str], title: str = "") -> None:
    """Draws a sequence logo: stacks as high as the information, of letters as high as their share in it.

    The scale ends at log2 K bits, or earlier where no stack comes near: read it before you compare two.

    Source:
        Schneider and Stephens (1990), https://doi.org/10.1093/nar/18.20.6097
    """
    heights = shares(sequences, len(alphabet)) * information(sequences, len(alphabet))[:, None]
    tallest = heights.sum(1).max().item()
    top = next((bits for bits in SCALES if tallest <= bits), math.log2(len(alphabet)))
    lines = heights.tensor_split(-(-len(heights) // LETTERS_PER_LINE))
    width = min(max(5.0, len(lines[0])), 7.0)
    figure = Figure(figsize=(width, 2.4 * len(lines) + 0.2), layout="constrained")
    first = 1
    for i, line in enumerate(lines):
        _draw_line(figure.add_subplot(len(lines), 1, i + 1), line, alphabet, first, len(lines[0]), top)
        first += len(line)
    figure.axes[0].set_title(title, fontsize="medium")
    figure.axes[-1].set_xlabel("position")
    if not _is_nucleic(alphabet):
        key = [Patch(color=colour, label=name) for name, colour in RESIDUES.values()]
        figure.legend(
            handles=key, loc="outside upper center", ncols=len(key), frameon=False, fontsize="small",
            handlelength=1, columnspacing=1,
        )  # fmt: skip
    with atomic_file(path) as file:
        figure.savefig(file, format="png", dpi=150)


def kmer_correlation(a: Sequences, b: Sequences, categories: int, k: int = 3, end: bool = False) -> Estimate:
    """Pearson's correlation of how often each of the K^k words of k letters occurs in two sets.

    All windows count that lie ahead of a sequence's end. The standard error is the jackknife's over at most
    100 parts of each set; for two sets from one distribution it is too wide, by a factor of sqrt 2 in the
    limit. The correlation is NaN if one of the sets holds all words equally often.

    Args:
        a: Sequences of tokens 0 to K - 1, of k letters or more, 3 or more of them.
        b: As `a`; their number and length may differ.
        categories: K.
        end: Whether token K follows the end of sequences that are shorter than others.
    Source:
        Wang et al. (2024, DRAKES), naturalness by 3-mers. https://arxiv.org/abs/2410.13643
    """
    at_least(3, a, b)
    counts_a, counts_b = (_kmers(x, categories, k, end) for x in (a, b))
    total_a, total_b = counts_a.sum(0), counts_b.sum(0)
    value = _pearson(total_a[None], total_b[None])
    errors = jackknife(_pearson(total_a - counts_a, total_b[None]))
    errors = errors + jackknife(_pearson(total_a[None], total_b - counts_b))
    return Estimate(value.item(), errors.sqrt().item())


def word_length(vocabulary: Vocabulary, most: int = 10_000) -> int:
    """How long words are that sets are compared by: up to three letters, if there are at most so many."""
    lengths = range(2, min(3, vocabulary.longest) + 1)
    return max([1, *(k for k in lengths if len(vocabulary.letters) ** k <= most)])


def diversity(sequences: Sequences) -> Estimate:
    """The mean share of positions at which two of the sequences differ, with its jackknife error.

    It equals the mean cosine distance of the one-hot vectors. Collapse drives it to 0; letters drawn evenly
    from K give 1 - 1 / K.
    """
    at_least(3, sequences)
    n = len(sequences)
    counts = _counts(sequences, int(sequences.max()) + 1)
    same = (counts * (counts - 1)).sum(1)  # ordered pairs with the same letter, per position
    own = counts.gather(1, sequences.T).T - 1  # other sequences with the same letter there
    without = 1 - ((same - 2 * own) / ((n - 1) * (n - 2))).mean(1)
    value = 1 - (same / (n * (n - 1))).mean()
    return Estimate(value.item(), jackknife(without).sqrt().item())


def shares(sequences: Sequences, categories: int) -> PerLetter:
    """The share of every letter at every position."""
    at_least(1, sequences)
    return _counts(sequences, categories) / len(sequences)


def entropy(sequences: Sequences, categories: int) -> Some:
    """H = -sum_k p_k log2 p_k of every position, in bits, from the shares p; too low by about
    (K - 1) / (2 n ln 2).
    """
    return torch.special.entr(shares(sequences, categories)).sum(1) / math.log(2)


def information(sequences: Sequences, categories: int) -> Some:
    """log2 K - H of every position in bits, less its bias in a set of n, (K - 1) / (2 n ln 2); at least 0."""
    bias = (categories - 1) / (2 * math.log(2) * len(sequences))
    return (math.log2(categories) - bias - entropy(sequences, categories)).clamp(min=0)


def _draw_line(
    axes: Axes, heights: PerLetter, alphabet: Sequence[str], first: int, width: int, top: float
) -> None:
    """One line of a logo, `width` positions wide and `top` bits high."""
    shown = [token for token, letter in enumerate(alphabet) if letter != END]
    alphabet, heights = [alphabet[token] for token in shown], heights[:, shown]
    letters = BASES if _is_nucleic(alphabet) else {key: colour for key, (_, colour) in RESIDUES.items()}
    colours = dict.fromkeys(alphabet, "#707070") | {c: colour for key, colour in letters.items() for c in key}
    positions = range(first, first + len(heights))
    drawable = all(len(letter) == 1 for letter in alphabet)
    drawable = drawable and bool(heights.any())  # of empty stacks logomaker warns about its own limits
    if drawable and find_spec("logomaker"):
        import logomaker  # which loads pandas and pyplot
        import pandas as pd

        table = pd.DataFrame(heights.cpu().numpy(), index=positions, columns=list(alphabet))
        logomaker.Logo(table, ax=axes, color_scheme=colours)
    else:
        for position, column in zip(positions, heights.tolist(), strict=True):
            _stack(axes, position, dict(zip(alphabet, column, strict=True)), colours)
    axes.set(
        xlim=(first - 0.6, first + width - 0.4),
        ylim=(0, top),
        ylabel="information, bits",
    )
    axes.set_xticks(positions)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(bottom=False)


def _stack(axes: Axes, position: int, heights: dict[str, float], colours: dict[str, str]) -> None:
    """The letters of one position, the highest on top, as logomaker stacks them, which knows single ones."""
    floor, bold = 0.0, FontProperties(weight="bold")
    widest = 0.95 / TextPath((0, 0), "E", prop=bold).get_extents().width  # or an I would be a block
    for letter, height in sorted(heights.items(), key=lambda item: item[1]):
        outline = TextPath((0, 0), letter, prop=bold)
        box = outline.get_extents()
        middle, stretch = (box.x0 + box.x1) / 2, min(0.95 / box.width, widest)
        move = Affine2D().translate(-middle, -box.y0).scale(stretch, height / box.height)
        move = move.translate(position, floor)
        axes.add_patch(PathPatch(move.transform_path(outline), color=colours[letter], linewidth=0))
        floor += height


def _is_nucleic(alphabet: Sequence[str]) -> bool:
    return set(filter(None, alphabet)) <= set("".join(BASES))


def _counts(sequences: Sequences, categories: int) -> Tensor:
    """How often each token is at each position: (position, category)."""
    _check(sequences, categories)
    length = sequences.shape[1]
    place = torch.arange(length, device=sequences.device) * categories
    flat = (sequences + place).flatten().bincount(minlength=length * categories)
    return flat.view(length, categories).double()


def _kmers(sequences: Sequences, categories: int, k: int, end: bool) -> Tensor:
    """How often each word of k letters occurs in each part of a set: (part, word)."""
    _check(sequences, categories + end)
    windows = sequences.shape[1] - k + 1
    if k < 1 or windows < 1:
        raise ValueError(f"k must be 1 to {sequences.shape[1]}, the length of the sequences, but got {k}")
    words = sum(sequences[:, i : i + windows] * categories**i for i in range(k))
    parts, size = min(len(sequences), GROUPS), categories**k
    part = torch.arange(len(sequences), device=sequences.device) % parts
    whole = (sequences < categories).unfold(1, k, 1).all(2)
    counted = (words + part[:, None] * size)[whole]
    return counted.bincount(minlength=parts * size).view(parts, size)


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Of each row of x with each row of y, one of which has one row."""
    x, y = (z.double() - z.double().mean(1, keepdim=True) for z in (x, y))
    return (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()


def _check(sequences: Sequences, categories: int) -> None:
    low, high = int(sequences.min()), int(sequences.max())
    if low < 0 or high >= categories:
        raise ValueError(
            f"tokens must be 0 to {categories - 1}, but got {low} to {high}; draw whole sequences"
        )
