"""How cost grows with work: exponents of time and memory in each size, from results/cost.json.

    python benchmarks/growth.py

draws docs/cost.png; `document.py` writes the tables.
"""

import math
import statistics
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "cost.png"
SIZES = {"batch": "batch", "steps": "steps T", "width": "width", "length": "length"}
COSTS = {"time": ("cpu_seconds", "passes_cpu_seconds"), "memory": ("peak_bytes", "passes_peak_bytes")}
FITTED = 3  # of the largest values
Row = dict[str, Any]


def sweep(found: list[Row], size: str) -> list[Row]:
    """The rows in which one size is doubled, the smallest first."""
    return sorted((row for row in found if size in row["sweeps"]), key=lambda row: row[size])


def exponent(group: list[Row], size: str, cost: str) -> tuple[float, float]:
    """The k of cost ~ size^k, by least squares of logarithms over the largest sizes, and its error."""
    x = [math.log(row[size]) for row in group[-FITTED:]]
    y = [math.log(row[cost]) for row in group[-FITTED:]]
    slope, start = statistics.linear_regression(x, y)
    off = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    return slope, math.sqrt(off / (len(x) - 2) / (len(x) * statistics.pvariance(x)))


def methods(found: list[Row], chain: str) -> dict[str, list[Row]]:
    """The rows of each method on a chain."""
    names = dict.fromkeys(row["algorithm"] for row in found if row["chain"] == chain)
    return {
        name: [row for row in found if (row["chain"], row["algorithm"]) == (chain, name)] for name in names
    }


def draw(found: list[Row], path: Path) -> None:
    """A panel per cost, chain and size: a line per method, and a band over the limits of all."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    chains = list(dict.fromkeys(row["chain"] for row in found))
    lines = [(chain, cost) for chain in chains for cost in COSTS]
    figure = Figure(figsize=(3.1 * len(SIZES), 2.5 * len(lines) + 0.6), layout="constrained")
    every = figure.subplots(len(lines), len(SIZES), squeeze=False)
    names = list(dict.fromkeys(row["algorithm"] for row in found))
    colors = {name: colormaps["tab20"](k) for k, name in enumerate(names)}
    for row_of_axes, (chain, cost) in zip(every, lines, strict=True):
        for axes, (size, label) in zip(row_of_axes, SIZES.items(), strict=True):
            panel(axes, methods(found, chain), size, COSTS[cost], colors)
            axes.set_title(f"{chain}, {cost}", fontsize=9)
            axes.set_xlabel(label, fontsize=9)
        row_of_axes[0].set_ylabel("times the smallest", fontsize=9)
    named = {str(line.get_label()): line for axes in every.flat for line in axes.get_lines()}
    names = [name for name in [*colors, "passes alone, of any method"] if name in named]
    figure.legend(
        [named[n] for n in names], names, loc="outside upper center", ncols=6, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=90)


def panel(axes: Any, groups: dict[str, list[Row]], size: str, costs: tuple[str, str], colors: Any) -> None:
    """Costs over those of the smallest size, on logarithmic axes."""
    limits: list[list[float]] = []
    x: list[int] = []
    for name, found in groups.items():
        group = sweep(found, size)
        x = [row[size] for row in group]
        cost, limit = ([row[key] / group[0][key] for row in group] for key in costs)
        axes.plot(x, cost, "o-", ms=2.5, lw=1, color=colors[name], label=name)
        limits.append(limit)
    low, high = ([f(values) for values in zip(*limits, strict=True)] for f in (min, max))
    axes.fill_between(x, low, high, color="0.5", alpha=0.3, lw=0)
    axes.plot([], [], color="0.5", alpha=0.3, lw=7, label="passes alone, of any method")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)


def main() -> None:
    from document import rows

    draw(rows(HERE / "results" / "cost.json"), PICTURE)


if __name__ == "__main__":
    main()
