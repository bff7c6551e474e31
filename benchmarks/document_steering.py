"""Writes what was measured of steering into docs/steering.md, between its markers, from JSON.

    python benchmarks/document_steering.py

What has not been run is left out. The pictures are drawn by samplers.py and frontier.py.
"""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from document import rows, table, write_page

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "steering.md"
Row = dict[str, Any]
ORDER = ["p_r", "ppo", "ppo-more", "smc", "svdd-r", "svdd", "guidance", "best-of-n"]
REWARDS = {"gmm-x": "x", "gmm-sin": "sin 3x"}


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))


def measured(results: Path) -> str:
    """All tables, as Markdown."""
    found = {name: rows(results / f"{name}.json") for name in ("values", "samplers", "frontier", "steering")}
    parts: list[tuple[Callable[[list[Row]], str], list[Row]]] = [
        (learned, some(found["values"], part="learned")),
        (squared, some(found["values"], part="squared")),
        (guidance, some(found["values"], part="guidance")),
        (unbiased, some(found["samplers"], task="log-z")),
        (distances, [row for row in found["samplers"] if row["task"] != "log-z"]),
        (frontier, found["frontier"]),
        (scale, [row for row in found["steering"] if row["task"].startswith("scale")]),
        (distilled, [row for row in found["steering"] if row["task"].startswith("distill")]),
        (overhead, some(found["steering"], task="overhead")),
    ]
    return "\n".join(write(mine) for write, mine in parts if mine)


def learned(found: list[Row]) -> str:
    """How far learned values are from the exact ones."""
    methods = distinct(row["method"] for row in found)
    lines = []
    for task, alpha in problems(found):
        cells = []
        for method in methods:
            group = some(found, task=task, alpha=alpha, method=method)
            cells.append(spread([row["error_nats"] for row in group]))
        lines.append([REWARDS[task], f"{alpha:g}", *cells])
    seconds = [row["seconds"] for row in found]
    return (
        "**Learned values** against the exact v_t of the 50-step mixture: the mean of |error| / alpha, "
        "in nats,\n"
        "over p*'s x_t and over t; lowest to highest of up to three seeds (bar 0.02 for `linex`).\n"
        f"{found[0]['reward_calls']:,} reward calls, {min(seconds):.0f} to {max(seconds):.0f} CPU "
        f"seconds each.\n"
        "`python benchmarks/values.py`, [`values.json`](../benchmarks/results/values.json).\n\n"
        + table(["reward", "alpha", *methods], lines)
    )


def squared(found: list[Row]) -> str:
    lines = []
    for task, alpha in problems(found):
        group = some(found, task=task, alpha=alpha)
        columns = ("error_nats", "below_nats", "bound_below_nats")
        cells = [spread([row[key] for row in group]) for key in columns]
        lines.append([REWARDS[task], f"{alpha:g}", *cells])
    head = ["reward", "alpha", "|error| of E[r given x_t]", "learned lies below v_t by"]
    return (
        "**Plain regression** of r on x_t learns E[r | x_t], a lower bound of v_t, all in nats over the\n"
        "reference's distribution of x_t:\n\n" + table([*head, "the exact E[r given x_t] by"], lines)
    )


def guidance(found: list[Row]) -> str:
    lines = []
    for task, alpha in problems(found):
        for row in some(found, task=task, alpha=alpha):
            if row["method"].startswith("posterior mean, order 2, guided"):
                continue  # far off wherever the twisted chain is
            tv = f"{row['tv']:.3f}" if row["tv"] else "0"
            numbers = [f"{row['reward']:.3f}", tv, f"{row['kl_nats']:.3f}", f"{row['objective']:.3f}"]
            lines.append([REWARDS[task], f"{alpha:g}", row["method"], *numbers])
    head = ["reward", "alpha", "steered by", "E r", "total variation to p_r", "path KL, nats", "J"]
    return (
        "**Values that need no training**, exactly. *Twisted*: every step is tilted by exp(v / alpha), "
        "which SVDD\n"
        "tends to as M grows; *guided*: its mean is moved by the gradient. Look at J, not at E r: the "
        "posterior\n"
        "mean overshoots, and can cost more than it brings.\n\n" + table(head, lines)
    )


def unbiased(found: list[Row]) -> str:
    """How far the means of exp(log Z) are from Z, in standard errors."""
    lines = []
    for problem in distinct(row["problem"] for row in found):
        for potential in distinct(row["potential"] for row in found):
            cells = []
            for threshold in sorted({row["threshold"] for row in found}):
                group = some(found, problem=problem, potential=potential, threshold=threshold)
                cells.append(
                    "; ".join(f"{r['z_over_exact']:.3f} ± {r['z_over_exact_se']:.3f}" for r in group)
                )
            lines.append([problem, f"`{potential}`", *cells])
    count, particles = found[0]["populations"], found[0]["particles"]
    head = ["problem", "potential", "never resampled", "below half", "at every step"]
    return (
        f"**SMC's estimate of Z over the exact Z**, {count:,} populations of {particles}, with the "
        f"exact value; with\n"
        "the posterior mean (1 is unbiased; the weights of `sum` are of a value made smaller).\n"
        "`python benchmarks/samplers.py`, [`samplers.json`](../benchmarks/results/samplers.json).\n\n"
        + table(head, lines)
    )


def distances(found: list[Row]) -> str:
    picked = [row for row in found if row.get("passes") and row["method"] != "optimum"]
    lines = []
    for task in distinct(row["task"] for row in picked):
        for value in ("exact", "posterior mean"):
            for method in distinct(row["method"] for row in picked):
                group = [r for r in some(picked, task=task, method=method) if r.get("value", value) == value]
                if group and not (method == "best-of-n" and value != "exact"):
                    best = min(group, key=lambda row: row["tv"])
                    seen = value if "value" in best else ""
                    lines.append([task, method, seen, f"{best['tv']:.3f}", f"{best['passes']:,}"])
    head = ["task", "sampler", "value", "least total variation", "at passes per sample"]
    return (
        "**How close samplers come to p_r**, and for how many passes through the denoiser and the value:\n\n"
        "![Total variation to the tilted distribution against network passes per sample](samplers.png)\n\n"
        + table(head, lines)
    )


def frontier(found: list[Row]) -> str:
    """J of every method at equal cost."""
    head = ["task", "alpha", "equal", *sorted({row["method"] for row in found}, key=ORDER.index)]
    lines = []
    for task in distinct(row["task"] for row in found):
        for alpha in sorted({row["alpha"] for row in some(found, task=task)}):
            for budget in ("network", "reward"):
                cells = []
                for method in head[3:]:
                    group = some(found, task=task, alpha=alpha, method=method)
                    group = [row for row in group if row["budget"] in (budget, "both")]
                    cells.append(j_of(group))
                lines.append([task, f"{alpha:g}", f"{budget} calls", *cells])
    return (
        "**Steering against fine-tuning at equal cost**: J, with KL in nats in brackets (an upper bound "
        "for SMC and\n"
        "SVDD). `ppo` trains for 256 digits or 1,000 sequences, `ppo-more` for three or five times as "
        "many, at\n"
        "the same cost per sample. `python benchmarks/frontier.py`,\n"
        "[`frontier.json`](../benchmarks/results/frontier.json).\n\n"
        "![Reward against KL for fine-tuning and samplers at equal network and reward "
        "calls](steering.png)\n\n" + table(head, lines)
    )


def j_of(group: list[Row]) -> str:
    if not group:
        return ""
    j, kl = (statistics.mean(row[key] for row in group) for key in ("objective", "kl_nats"))
    return f"{j:.3f} ({kl:.2f})"


def scale(found: list[Row]) -> str:
    """Classifier guidance and fine-tuning, at every scale."""
    lines = []
    for w in sorted({row["scale"] for row in found}):
        for method in distinct(row["method"] for row in found):
            for steps in sorted({row["steps"] for row in some(found, method=method)}):
                group = some(found, method=method, scale=w, steps=steps)
                if group:
                    cells = [spread([r[key] for r in group]) for key in ("total_variation", "kl_to_tilted")]
                    lines.append([f"{w:g}", method, f"{steps}", *cells])
    head = ["w", "method", "steps", "total variation", "KL to p(x) p(y given x)^w, nats"]
    return (
        "**p(x) p(y | x)^w**, exactly: classifier guidance at scale w with the best classifier of "
        "noised samples\n"
        "(`candidates`: tilting steps by it without a first-order error), and PPO at alpha = 1 / w, "
        "three seeds.\n"
        "`python benchmarks/steering.py`, [`steering.json`](../benchmarks/results/steering.json).\n\n"
        + table(head, lines)
    )


def distilled(found: list[Row]) -> str:
    lines = []
    for task in distinct(row["task"] for row in found):
        for method in distinct(row["method"] for row in some(found, task=task)):
            group = some(found, task=task, method=method)
            row = group[0]
            lines.append(
                [
                    REWARDS[task.replace("distill", "gmm")],
                    method,
                    f"{row['optimum']:.4f}",
                    f"{row['sampler_objective']:.4f} ± {row['sampler_se']:.4f}",
                    spread([r["objective"] for r in group]),
                    spread([r["behind"] for r in group]),
                ]
            )
    head = ["reward", "sampler", "J*", "the sampler's J, at least", "the student's J", "behind, nats"]
    return (
        "**Distilling SMC into weights**: exact J of the student, lowest to highest of three seeds "
        "(bar: 0.05 nats\n"
        "behind the sampler; negative is ahead).\n\n" + table(head, lines)
    )


def overhead(found: list[Row]) -> str:
    names = ("ratio_of_fastest", "ratio_median", "ratio_min", "ratio_max")
    lines = [[row["method"], *(f"{row[name]:.3f}" for name in names)] for row in found]
    return (
        "**Overhead** of a steered draw of digits over its bare passes through denoiser and reward, in\n"
        "turn, CPU time (bar 1.15); single pairs are noisy on a shared machine, the fastest of each\n"
        "side are not.\n\n"
        + table(["sampler", "fastest over fastest", "median of pairs", "least", "most"], lines)
    )


def some(found: list[Row], **wanted: Any) -> list[Row]:
    """The rows with these entries."""
    return [row for row in found if all(row.get(key) == value for key, value in wanted.items())]


def problems(found: list[Row]) -> list[tuple[str, float]]:
    return list(dict.fromkeys((row["task"], row["alpha"]) for row in found))


def distinct(names: Iterable[str]) -> list[str]:
    """The names, in the order of their first rows."""
    return list(dict.fromkeys(names))


def spread(values: list[float]) -> str:
    """Lowest to highest, if there are any."""
    if not values:
        return ""
    low, high = (f"{round(value, 3) + 0:.3f}" for value in (min(values), max(values)))  # + 0: no -0.000
    return low if low == high else f"{low} to {high}"


if __name__ == "__main__":
    main()
