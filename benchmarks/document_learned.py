"""Writes what was measured of learned rewards into docs/learned.md, between its markers, from JSON.

python benchmarks/document_learned.py
"""

import statistics
from pathlib import Path
from typing import Any

from document import rows, table, write_page

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "learned.md"
WORLDS = {"six6": "SIX6, labels from the lower half", "gb1": "GB1, labels at random"}


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))


def measured(results: Path) -> str:
    """A table for each landscape that was run, as Markdown."""
    found = rows(results / "learned.json")
    return "".join(
        offline(name, [row for row in found if row["task"] == f"offline-{name}"]) for name in WORLDS
    )


def offline(name: str, found: list[dict[str, Any]]) -> str:
    """The gap of every rule: lowest to highest over seeds."""
    if not found:
        return ""
    alphas = sorted({row["alpha"] for row in found}, reverse=True)
    head = ["labels", "learner", "rule", *(f"gap at alpha {alpha:g}, nats" for alpha in alphas)]
    head += ["coverage, held out", f"under the policy, alpha {alphas[-1]:g}"]
    lines = []
    for key in dict.fromkeys((row["labels"], row["learner"], row["rule"]) for row in found):
        group = [row for row in found if (row["labels"], row["learner"], row["rule"]) == key]
        gaps = [spread([row["gap_nats"] for row in group if row["alpha"] == alpha]) for alpha in alphas]
        inside = [row for row in group if row["alpha"] == alphas[-1]]
        covered = (
            f"{statistics.mean(row[part] for row in inside):.2f}"
            for part in ("coverage", "coverage_under_policy")
        )
        lines.append([str(key[0]), *key[1:], *gaps, *covered])
    seeds = len({row["seed"] for row in found})
    return (
        f"\n{WORLDS[name]}; {seeds} seeds, the mean gap and in brackets the lowest and highest.\n\n"
        + table(head, lines)
    )


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
