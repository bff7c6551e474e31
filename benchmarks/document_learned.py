"""Writes what was measured of learned rewards into docs/learned.md, between its markers, from JSON.

python benchmarks/document_learned.py
"""

import statistics
from pathlib import Path
from typing import Any

from document import rows, table, write_page

from difftilt.evaluation.course import Limits

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "learned.md"
WORLDS = {"six6": "SIX6, labels from the lower half", "gb1": "GB1, labels at random"}

ONLINE = [
    "rule",
    "seeds",
    "gap after 3 batches, nats",
    "gap after 6",
    "true reward",
    "modelled",
    "best 10 measured",
]
ONLINE += ["last batch", "letters between two of it"]
PARTED = 0.1  # of the reward's range
MONITORS = (
    ("spread", "spread of members, 1.5 x", 1.5),
    ("distance", "distance to the labels, 1.25 x", 1.25),
    ("above_best_label", "modelled reward above the best label", 0.0),
)
TASKS = {
    "six6-lower": "SIX6, lower half",
    "six6-all": "SIX6, all",
    "gb1-lower": "GB1, lower half",
    "gb1-all": "GB1, all",
}
LABS = {"six6": "SIX6", "pax6": "PAX6", "gb1": "GB1"}


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))


def measured(results: Path) -> str:
    """A table for each landscape that was run, as Markdown."""
    found, asked = rows(results / "learned.json"), rows(results / "lab.json")
    return "".join(
        [offline(name, [row for row in found if row["task"] == f"offline-{name}"]) for name in WORLDS]
        + [online(name, [row for row in asked if row["task"] == f"lab-{name}"]) for name in LABS]
        + [misled(rows(results / "mechanism.json"))]
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


def online(name: str, found: list[dict[str, Any]]) -> str:
    """What every query rule has reached, the best first."""
    parts = []
    for noise, start in dict.fromkeys((row["noise"], row["start"]) for row in found):
        group = [row for row in found if (row["noise"], row["start"]) == (noise, start)]
        known = dict.fromkeys(row["rule"] for row in group)
        rules = {rule: [row for row in group if row["rule"] == rule] for rule in known}
        ends = {rule: [row["gap_nats"][-1] for row in runs] for rule, runs in rules.items()}
        lines = []
        for rule in sorted(rules, key=lambda rule: statistics.mean(ends[rule])):
            half = [row["gap_nats"][len(row["gap_nats"]) // 2] for row in rules[rule]]
            numbers = ("reward", "modelled_reward", "top_mean", "batch_mean", "batch_distance")
            cells = (f"{statistics.mean(row[key][-1] for row in rules[rule]):.3f}" for key in numbers)
            lines.append([f"`{rule}`", str(len(half)), spread(half), spread(ends[rule]), *cells])
        parts.append(
            f"\n{LABS[name]} online, {start} + 6 x 96 labels, noise {noise:g}, alpha {group[0]['alpha']:g}:"
            " the mean over seeds.\n\n" + table(ONLINE, lines)
        )
    return "".join(parts)


def misled(found: list[dict[str, Any]]) -> str:
    """Where learned rewards part from the truth, and which monitors say so: first KL, and shares of tilts."""
    if not found:
        return ""
    lines = []
    for task in dict.fromkeys(row["task"] for row in found):
        group = [row for row in found if row["task"] == task]
        peak = [max(zip(row["reward"], row["kl_nats"], strict=True)) for row in group]
        parted = [first(row, excess(row), PARTED) for row in group]
        fires = (told([first(row, row[name], least) for row in group]) for name, _, least in MONITORS)
        best = f"{statistics.mean(p[0] for p in peak):.2f} at {statistics.mean(p[1] for p in peak):.1f}"
        lines.append([TASKS[task], best, told(parted), *fires])
    notes = [noticed(found, what, {name: least}) for name, what, least in MONITORS]
    both = {"spread": Limits.spread, "above_best_label": Limits.above}
    notes.append(
        noticed(found, f"either of a run's: spread {Limits.spread:g} x, or above the best label", both)
    )
    head = ["labels", "best true reward, at KL", f"modelled - true reaches {PARTED:g} at KL"]
    return (
        "\nWhere tilts towards a learned mean mislead, as alpha falls from 1 to .003: KL in nats at which\n"
        "each monitor first fires, mean over seeds, and in brackets for how many of them.\n\n"
        + table(head + [what for _, what, _ in MONITORS], lines)
        + f"\nOf all tilts whose modelled reward is {PARTED:g} or more too high, and of those where it is\n"
        f"less than {PARTED / 2:g} too high:\n\n" + "\n".join(notes) + "\n"
    )  # fmt: skip


def noticed(found: list[dict[str, Any]], what: str, limits: dict[str, float]) -> str:
    """How many tilts one of these limits notices, of those that mislead and of others."""
    off, close = [], []
    for row in found:
        for k, ahead in enumerate(excess(row)):
            said = any(row[name][k] >= least for name, least in limits.items())
            off += [said] * (ahead >= PARTED)
            close += [said] * (ahead < PARTED / 2)
    return f"- {what}: {sum(off)} of {len(off)} noticed, {sum(close)} of {len(close)} false alarms"


def excess(row: dict[str, Any]) -> list[float]:
    """By how much the modelled reward is too high."""
    return [guess - true for guess, true in zip(row["modelled_reward"], row["reward"], strict=True)]


def first(row: dict[str, Any], values: list[float], least: float) -> float | None:
    """The KL at which a value is first reached."""
    return next((kl for kl, value in zip(row["kl_nats"], values, strict=True) if value >= least), None)


def told(found: list[float | None]) -> str:
    kls = [kl for kl in found if kl is not None]
    return f"{statistics.mean(kls):.1f} ({len(kls)} of {len(found)})" if kls else "never"


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
