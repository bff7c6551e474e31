"""Draws docs/queries.png: how far every query rule is from the optimum, against what it has measured.

python benchmarks/lab_figure.py
"""

import statistics
from pathlib import Path

from document import rows
from matplotlib.figure import Figure

HERE = Path(__file__).parent
PICTURE = HERE.parent / "docs" / "queries.png"
NOISE, START, BATCH = 0.05, 96, 96


def main() -> None:
    found = [
        row
        for row in rows(HERE / "results" / "lab.json")
        if (row["task"], row["noise"], row["start"]) == ("lab-six6", NOISE, START)
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    curves = {name: [row["gap_nats"] for row in found if row["rule"] == name] for name in names(found)}
    for name, runs in sorted(curves.items(), key=lambda item: last(item[1]), reverse=True):
        labels = [START + BATCH * number for number in range(len(runs[0]))]
        columns = list(zip(*runs, strict=True))
        (line,) = axes.plot(labels, list(map(statistics.mean, columns)), "o-", ms=3, label=name)
        axes.fill_between(
            labels, list(map(min, columns)), list(map(max, columns)), color=line.get_color(), alpha=0.15
        )
    axes.set(xlabel="sequences measured", ylabel="gap to the optimum, nats", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(PICTURE, dpi=120)


def names(found: list[dict]) -> dict[str, None]:
    return dict.fromkeys(row["rule"] for row in found)


def last(runs: list[list[float]]) -> float:
    return statistics.mean(run[-1] for run in runs)


if __name__ == "__main__":
    main()
