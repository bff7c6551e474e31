"""Small charts as inline SVG. They hold numbers only: a page writes the words and owns the colours."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

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
# --line-0, --line-1, ... of a page; a drawing tells names by their colours, so none of them is one of COLOURS
LINES = ("#0072b3", "#d55e00", "#009e74", "#cc79a7", "#8a6d00", "#56b4e9")
DASHES = ("-", (0, (5, 2)), (0, (2, 1.5)))  # of the first curves, of as many after them, and so on


def curve(
    rounds: Sequence[float],
    mean: Sequence[float],
    se: Sequence[float],
    before: float | None = None,
    limit: float | None = None,
    over: str = "round",
) -> str:
    """A number over the course of a run with a band of two standard errors.

    Args:
        rounds: Round numbers, or what was spent by then, ascending.
        mean: The number's mean in each round.
        se: Its standard error; NaN draws no band.
        before: The pretrained model's level, a dashed line.
        limit: A level that cannot or should not be passed, a dotted line.
        over: What `rounds` holds, below the axis.
    """
    columns = [np.where(np.isfinite(c), c, np.nan) for c in np.asarray([rounds, mean, se], float)]
    x, y, band = _thin(columns[0], columns[1], 2 * columns[2])
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing()
        axes.fill_between(x, y - band, y + band, color=COLOURS["after"], alpha=0.2, linewidth=0)
        axes.plot(x, y, color=COLOURS["after"], linewidth=2, marker="o" if len(x) < 3 else "")
        if before is not None:
            axes.axhline(before, color=COLOURS["before"], linewidth=1.6, dashes=(5, 3))
        _course(axes, over, limit)
        return _svg(figure)


@dataclass(frozen=True)
class Line:
    """One curve of a comparison.

    Args:
        x: What was spent, ascending.
        mean: The number by then.
        se: Its standard error; NaN draws no band.
    """

    x: Sequence[float]
    mean: Sequence[float]
    se: Sequence[float]


def comparison(lines: Sequence[Line], over: str, limit: float | None = None) -> str:
    """Several curves with bands of two standard errors, in the colours of --line-0, --line-1 and on

    Args:
        over: What they are drawn over.
        limit: A level that none can pass, a dotted line.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing()
        for i, line in enumerate(lines):
            x, mean, band = _thin(*(np.asarray(c, float) for c in (line.x, line.mean, line.se)))
            colour, dash = LINES[i % len(LINES)], DASHES[i // len(LINES) % len(DASHES)]
            axes.fill_between(x, mean - 2 * band, mean + 2 * band, color=colour, alpha=0.16, linewidth=0)
            axes.plot(x, mean, color=colour, linewidth=2, linestyle=dash, marker="o" if len(x) < 3 else "")
        _course(axes, over, limit)
        return _svg(figure)


def _course(axes: Axes, over: str, limit: float | None) -> None:
    """The axis of what was spent, and the level that cannot be passed."""
    if limit is not None:
        axes.axhline(limit, color=COLOURS["limit"], linewidth=1.6, linestyle=":")
    axes.set_xlabel(over)
    if over == "round":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.margins(x=0.02, y=0.08)


def histogram(before: Sequence[float], after: Sequence[float], bins: int = 30) -> str:
    """The shares of samples over a score, before and after, with their means as dashed lines."""
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
                axes.axvline(float(values.mean()), color=COLOURS[name], linewidth=1.8, dashes=(3, 2))
        axes.set_ylabel("share of samples")
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.tick_params(axis="x", length=4)
        axes.margins(x=0.02)
        return _svg(figure)


def parity(predicted: Sequence[float], measured: Sequence[float], interval: Sequence[float]) -> str:
    """What was measured over what was predicted, with the line where both agree.

    Args:
        interval: Half of each prediction's interval.
    """
    x, y, half = (np.asarray(column, float) for column in (predicted, measured, interval))
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing()
        axes.errorbar(x, y, xerr=half, fmt="none", ecolor=COLOURS["before"], elinewidth=0.8, alpha=0.5)
        axes.plot(x, y, "o", color=COLOURS["after"], markersize=3.5)
        ends = [min(x.min(), y.min()), max(x.max(), y.max())]
        axes.plot(ends, ends, color=COLOURS["limit"], linewidth=1.6, linestyle=":")
        axes.set_xlabel("predicted")
        axes.set_ylabel("measured")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        return _svg(figure)


@dataclass(frozen=True)
class Point:
    """Where a row of a comparison ended; each number with its standard error.

    Args:
        x: And its standard error.
        y: And its standard error.
    """

    x: tuple[float, float]
    y: tuple[float, float]


def frontier(points: Sequence[Point], start: Point | None, x: str, y: str) -> str:
    """What was reached over what it cost, two standard errors each way, in the colours of --line-0 and on.

    Args:
        start: Where all began.
        x: The name of what it cost, and `y` of what was reached.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = _drawing()
        for i, point in enumerate(points):
            (x_at, x_se), (y_at, y_se), colour = point.x, point.y, LINES[i % len(LINES)]
            axes.errorbar(x_at, y_at, 2 * y_se, 2 * x_se, fmt="o", color=colour, markersize=6, linewidth=1.4)
        if start is not None:
            axes.plot(start.x[0], start.y[0], "o", color=COLOURS["before"], markersize=6)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(0.08)
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
    named = COLOURS | {f"line-{i}": colour for i, colour in enumerate(LINES)}
    for name, colour in named.items():
        text = text.replace(colour, f"var(--{name}, {colour})")
    return text.replace("<svg", '<svg aria-hidden="true"', 1)
