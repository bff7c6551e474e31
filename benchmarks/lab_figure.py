"""Draws how far every query rule is from the optimum, against what it has measured, from results/lab.json.

docs/queries.png         each landscape, 96 first labels and a noise of .05
docs/queries-study.png   GB1, with less and more noise, and with fewer and more first labels

python benchmarks/lab_figure.py
"""

import statistics
from pathlib import Path
from typing import Any

from document import rows
from document_learned import BASE, LABS, setting
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
BATCH = 96
Row = dict[str, Any]


def main() -> None:
    found = rows(HERE / "results" / "lab.json")
    rules = sorted({row["rule"] for row in found})
    color = {rule: f"C{number}" for number, rule in enumerate(rules)}
    base = {
        title: [row for row in found if row["task"] == f"lab-{name}" and setting(row) == BASE]
        for name, title in LABS.items()
    }
    draw(DOCS / "queries.png", {title: group for title, group in base.items() if group}, 1, color)
    gb1 = [row for row in found if row["task"] == "lab-gb1"]
    panels = {
        f"{start} first labels, noise {noise:g}": [row for row in gb1 if setting(row) == (noise, start)]
        for noise, start in sorted({setting(row) for row in gb1})
    }
    draw(DOCS / "queries-study.png", panels, len({row["noise"] for row in gb1}), color)


def draw(path: Path, panels: dict[str, list[Row]], height: int, color: dict[str, str]) -> None:
    """A picture of several panels with one legend, in rows of equal length."""
    width = -(-len(panels) // height)
    figure = Figure(figsize=(3.4 * width, 2.7 * height + 0.5), layout="constrained")
    every: list[Axes] = figure.subplots(height, width, squeeze=False, sharey=height > 1).flatten().tolist()
    for axes, (title, group) in zip(every, panels.items(), strict=True):
        panel(axes, group, color)
        axes.set_title(title, fontsize=10)
    for axes in every:  # once all are drawn, as they may share it
        axes.set_ylim(0, None)
    figure.supxlabel("sequences measured", fontsize=10)
    figure.supylabel("gap to the optimum, nats", fontsize=10)
    named = {str(line.get_label()): line for axes in every for line in axes.get_lines()}
    order = sorted(named)
    figure.legend([named[name] for name in order], order, loc="outside upper center", ncols=5, frameon=False)
    figure.savefig(path, dpi=120)


def panel(axes: Axes, group: list[Row], color: dict[str, str]) -> None:
    """A line per rule; bands are the lowest and highest seed."""
    for rule in sorted({row["rule"] for row in group}):
        runs = [row for row in group if row["rule"] == rule]
        labels = [runs[0]["start"] + BATCH * number for number in range(len(runs[0]["gap_nats"]))]
        columns = list(zip(*(row["gap_nats"] for row in runs), strict=True))
        axes.plot(
            labels, list(map(statistics.mean, columns)), "o-", ms=2, lw=1, label=rule, color=color[rule]
        )
        axes.fill_between(
            labels, list(map(min, columns)), list(map(max, columns)), color=color[rule], alpha=0.12, lw=0
        )


if __name__ == "__main__":
    main()
