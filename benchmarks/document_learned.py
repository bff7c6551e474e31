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
BASE = (0.05, 96)  # noise, and first labels


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))


def measured(results: Path) -> str:
    """A table for each landscape that was run, as Markdown."""
    found, asked = rows(results / "learned.json"), rows(results / "lab.json")
    return "".join(
        [offline(name, [row for row in found if row["task"] == f"offline-{name}"]) for name in WORLDS]
        + [online(name, [row for row in asked if row["task"] == f"lab-{name}"]) for name in LABS]
        + [tuned(rows(results / "lab_tuned.json"))]
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
    """What every query rule has reached, the best first; and at other noises and starts, if there are any."""
    rules = by_rule([row for row in found if setting(row) == BASE])
    if not rules:
        return ""
    lines = []
    for rule, runs in rules.items():
        half = [row["gap_nats"][len(row["gap_nats"]) // 2] for row in runs]
        numbers = ("reward", "modelled_reward", "top_mean", "batch_mean", "batch_distance")
        cells = (f"{statistics.mean(row[key][-1] for row in runs):.3f}" for key in numbers)
        lines.append([f"`{rule}`", str(len(half)), spread(half), spread(ends(runs)), *cells])
    noise, start = BASE
    return (
        f"\n{LABS[name]} online, {start} + 6 x 96 labels, noise {noise:g}, alpha {found[0]['alpha']:g}:"
        " the mean over seeds.\n\n" + table(ONLINE, lines) + study(name, found)
    )


def study(name: str, found: list[dict[str, Any]]) -> str:
    """The gap after six batches, at every noise and number of first labels."""
    settings = sorted(set(map(setting, found)))
    if len(settings) == 1:
        return ""
    groups = [by_rule([row for row in found if setting(row) == one]) for one in settings]
    seeds = min(len(runs) for group in groups for runs in group.values())
    head = ["noise", "first labels", *(f"`{rule}`" for rule in by_rule(found))]
    lines = [
        [f"{noise:g}", str(start), *(told_best(group, rule) for rule in by_rule(found))]
        for (noise, start), group in zip(settings, groups, strict=True)
    ]
    return (
        f"\n{LABS[name]} after six batches, at other noises and from fewer and more first labels: the mean"
        f" gap in nats over\n{seeds} seeds or more, the least of each row in bold.\n\n" + table(head, lines)
    )


def told_best(group: dict[str, list[dict[str, Any]]], rule: str) -> str:
    """The mean gap of a rule, in bold if no other is less."""
    if rule not in group:
        return ""
    text = f"{statistics.mean(ends(group[rule])):.2f}"
    return f"**{text}**" if rule == next(iter(group)) else text


def setting(row: dict[str, Any]) -> tuple[float, int]:
    """Noise, and first labels."""
    return row["noise"], row["start"]


def by_rule(found: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each rule, the rule of the least gap first."""
    rules = {rule: [r for r in found if r["rule"] == rule] for rule in {row["rule"] for row in found}}
    return dict(sorted(rules.items(), key=lambda item: statistics.mean(ends(item[1]))))


def ends(runs: list[dict[str, Any]]) -> list[float]:
    return [row["gap_nats"][-1] for row in runs]


def tuned(found: list[dict[str, Any]]) -> str:
    """A network that was tuned, beside the exact tilt by the same reward."""
    if not found:
        return ""
    lines = []
    for task, rule in sorted({(row["task"], row["rule"]) for row in found}):
        runs = [row for row in found if (row["task"], row["rule"]) == (task, rule)]
        kind, _, name = task.partition("-")
        what = "1,000 labels of the lower half" if kind == "offline" else f"six plates by `{rule}`"
        cells = (spread([row["gap_of_tilt_nats"] for row in runs]), spread(ends(runs)))
        best = f"{statistics.mean(row['top_mean'][-1] for row in runs):.3f}"
        lines.append([LABS[name], what, f"{runs[0]['alpha']:g}", str(len(runs)), *cells, best])
    head = ["landscape", "learned from", "alpha", "seeds", "gap of the exact tilt, nats"]
    head += ["gap of the tuned network", "best 10 measured"]
    return (
        "\nThe exact tilt by what was learned, and a network that PPO tuned towards it; plates as\n"
        "`difftilt lab propose` fills them.\n\n" + table(head, lines)
    )


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
