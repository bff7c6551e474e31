"""Small charts as inline SVG. They hold numbers only: a page writes the words and owns the colours."""

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's, which the colour-blind can tell apart; a page may define --before, --after, ... instead.
COLOURS = {"before": "#8a8f98", "after": "#0072b2", "limit": "#009e73", "ink": "#454b54", "rule": "#d9dce1"}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "difftilt",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.8,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["ink"],
    "ytick.color": COLOURS["ink"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
}
MOST_POINTS = 150


def curve(
    rounds: Sequence[float],
    mean: Sequence[float],
    se: Sequence[float],
    before: float | None = None,
    limit: float | None = None,
) -> str:
    """A number over the rounds with a band of two standard errors.

    Args:
        rounds: Round numbers, ascending.
        mean: The number's mean in each round.
        se: Its standard error; NaN draws no band.
        before: The pretrained model's level, a dashed line.
        limit: A level that cannot or should not be passed, a dotted line.
    """
    columns = [np.where(np.isfinite(c), c, np.nan) for c in np.asarray([rounds, mean, se], float)]
    x, y, band = _thin(columns[0], columns[1], 2 * columns[2])
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing()
        axes.fill_between(x, y - band, y + band, color=COLOURS["after"], alpha=0.2, linewidth=0)
        axes.plot(x, y, color=COLOURS["after"], linewidth=2, marker="o" if len(x) < 3 else "")
        if before is not None:
            axes.axhline(before, color=COLOURS["before"], linewidth=1.6, dashes=(5, 3))
        if limit is not None:
            axes.axhline(limit, color=COLOURS["limit"], linewidth=1.6, linestyle=":")
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.margins(x=0.02, y=0.08)
        return _svg(figure)


def histogram(before: Sequence[float], after: Sequence[float], bins: int = 30) -> str:
    """The shares of samples over a score, before and after, with their means as ticks on top."""
    scores = {"before": np.asarray(before, float), "after": np.asarray(after, float)}
    scores = {name: values[np.isfinite(values)] for name, values in scores.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(scores.values())), bins)
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing()
        for name, values in scores.items():
            if len(values):
                heights = np.histogram(values, edges)[0] / len(values)
                axes.stairs(heights, edges, fill=True, color=COLOURS[name], alpha=0.4)
                axes.stairs(heights, edges, color=COLOURS[name], linewidth=1.6)
                axes.axvline(float(values.mean()), color=COLOURS[name], linewidth=1.6, dashes=(2, 2))
        axes.set_ylabel("share of samples")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.margins(x=0.02)
        return _svg(figure)


def _drawing() -> tuple[Figure, Axes]:
    """One unit of the drawing is one CSS pixel on a phone."""
    figure = Figure(figsize=(5, 3.1), layout="constrained")
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure, axes


def _thin(x: np.ndarray, y: np.ndarray, band: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Long runs, averaged over neighbouring rounds; the band shrinks as that of a mean does."""
    if len(x) <= MOST_POINTS:
        return x, y, band
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    means = [(x[i].mean(), y[i].mean(), np.sqrt((band[i] ** 2).sum()) / len(i)) for i in parts]
    x, y, band = np.array(means).T
    return x, y, band


def _svg(figure: Figure) -> str:
    """The drawing alone: no document head, no addresses, no identifiers but those it refers to."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>| font-family: [^;]*;", "", text, flags=re.S)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| (width|height)="[\d.]+pt"| version="1.1"', "", text)
    text = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"| transform="rotate\(-0 [^"]*"', "", text)
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return text.replace("<svg", '<svg aria-hidden="true"', 1)
