"""Writes what was measured of sequences into docs/sequences.md, between its markers, from JSON.

    python benchmarks/document_sequences.py

and draws docs/landscape.png from results/landscape. Problems and methods that have not been run are left out.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from document import order, rows, table, write_page
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "sequences.md"
PICTURE = HERE.parent / "docs" / "landscape.png"
DELIVERED = 1000  # sequences that best-of-N is asked for
THOUSAND = 1000
STUDENT = "student"
DATA = {"lower": "the lower half", "whole": "the whole landscape"}


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))
    if problems := load(HERE / "results"):
        draw(problems, PICTURE)


def measured(results: Path) -> str:
    """All tables, as Markdown."""
    problems = load(results)
    parts = [landscapes(problems)] if problems else []
    parts += [exactness(rows(results / "exactness.json")), utr(results / "utr.json")]
    return "\n".join(part for part in parts if part)


def load(results: Path) -> list[dict[str, Any]]:
    """The problems, those on which settings were chosen first."""
    found = [json.loads(path.read_text()) for path in (results / "landscape").glob("*.json")]
    return sorted(found, key=lambda problem: (not problem["problem"].startswith("six6"), problem["problem"]))


def landscapes(problems: list[dict[str, Any]]) -> str:
    """The gap to the optimum, and the rest of what is known exactly."""
    return (
        "Landscapes: `python benchmarks/landscape.py PROBLEM`, with the curves in\n"
        "[`results/landscape`](../benchmarks/results/landscape).\n\n"
        "![The gap in nats against seconds and against reward calls, one line per method](landscape.png)\n"
        + "".join(map(landscape, problems))
    )


def landscape(problem: dict[str, Any]) -> str:
    groups, optimum, best_of = by_method(problem), problem["optimum"], problem["best_of_n"]
    learned = {name: [run["curve"][-1] for run in runs] for name, runs in groups.items()}
    students = learned.get(STUDENT)
    unit = statistics.mean(end["gap_nats"] for end in students) if students else None
    lines = [line("optimum p_r", [optimum | {"gap_nats": 0.0}], unit)]
    lines.append(["best masked policy", number([optimum["gap_of_best_masked_nats"]]), *[""] * 7])
    for name in sorted(learned, key=lambda name: (name != STUDENT, final_gap(learned[name]))):
        ends = learned[name]
        calls = statistics.mean(end["calls"] for end in ends)
        asked = "every score, once" if surrogates(groups[name]) else f"{calls:,.0f}" if calls else "0"
        lines.append(line(f"`{name}`", ends, unit, asked, number([end["seconds"] for end in ends], 0)))
    for row in best_of.values():
        name = f"best of {row['n']}" if row["n"] > 1 else "p_pre"
        lines.append(line(name, [row], unit, f"{DELIVERED * row['n']:,}"))
    head = ["", "gap, nats", "of the student's", "KL(p \\|\\| p_r)", "KL(p_r \\|\\| p)", "missed", "better"]
    seeds = number([len(runs) for runs in groups.values()], 0)
    runs = "one run" if seeds == "1" else f"{seeds} runs"
    title = f"\n{title_of(problem)}; {runs} of each method.\n\n"
    return title + table([*head, "reward calls", "seconds"], lines) + "".join(map(bias, groups.items()))


def line(
    name: str, found: list[dict[str, Any]], unit: float | None, calls: str = "", seconds: str = ""
) -> list[str]:
    """A row of the table; all but the seconds are numbers of distributions."""
    ratio = f"{final_gap(found) / unit:.2f}" if unit else ""
    kls = [number([row[key] for row in found]) for key in ("gap_nats", "reverse_kl_nats", "forward_kl_nats")]
    shares = [share([row[key] for row in found]) for key in ("missed", "better_than_seen")]
    return [name, kls[0], ratio, *kls[1:], *shares, calls, seconds]


def bias(group: tuple[str, list[dict[str, Any]]]) -> str:
    """What a method saw instead of the reward."""
    name, runs = group
    found = surrogates(runs)
    if not found:
        return ""
    keys = ("rmse", "gap_by_surrogate_nats", "kl_of_its_optimum_nats")
    error, gap, wrong = (number([row[key] for row in found]) for key in keys)
    fitted = number([row["seconds"] for row in found], 0)
    return (
        f"\n`{name}` sees a network that was fitted to every score in {fitted} s more (root mean squared\n"
        f"error {error}), whose own optimum has a KL of {wrong} nats to p_r; by that network's\n"
        f"scores its gap is {gap} nats.\n"
    )


def exactness(found: list[dict[str, Any]]) -> str:
    """What exact distributions cost, whether samples agree, and what drawing several tokens at once costs."""
    if not found:
        return ""
    parts = {name: [row for row in found if row["part"] == name] for name in ("speed", "sampling", "parity")}
    text = "\nThe exact numbers: `python benchmarks/exactness.py`, [`exactness.json`]"
    text += "(../benchmarks/results/exactness.json).\n"
    if parts["speed"]:
        head = ["call", "landscape", "unmasking, T", "states", "seconds of the networks", "beyond them"]
        lines = [
            [
                f"`{row['call']}`",
                row["landscape"],
                f"{row['unmasking']}, {row['steps']}",
                f"{row['states']:,}",
            ]
            + [f"{row[key]:.1f}" for key in ("network_cpu_seconds", "beyond_network_cpu_seconds")]
            + [f"{row['peak_mib']:,.0f} ({row['peak_mib_before']:,.0f})", f"{row['sum_minus_1']:.0e}"]
            for row in parts["speed"]
        ]
        head += ["peak of the process (before), MiB", "sum of the distribution, less 1"]
        text += "\n" + table(head, lines)
    if parts["sampling"]:
        lines = [
            [f"`{row['quantity']}`", f"{row['samples']:,}", f"{row['recursion']:.5f}"]
            + [f"{row['sampled']:.5f} ± {row['standard_error']:.5f}", f"{row['difference_in_errors']:+.1f}"]
            for row in parts["sampling"]
        ]
        head = ["quantity", "samples", "by recursion", "sampled", "difference, standard errors"]
        text += "\n" + table(head, lines)
    return text + (parity(parts["parity"]) if parts["parity"] else "")


def parity(found: list[dict[str, Any]]) -> str:
    """The best Bernoulli policy's gap, as T grows."""
    steps = sorted({row["steps"] for row in found})
    gaps = {(row["bits"], row["steps"]): f"{row['gap_nats']:.4f}" for row in found}
    lines = [[str(b), *(gaps.get((b, t), "") for t in steps)] for b in sorted({b for b, _ in gaps})]
    return (
        "\nBernoulli unmasking at its best, where the reward is 1 if the bits sum to an odd number (alpha\n"
        f"= {found[0]['alpha']:g}): the gap to J*, in nats, as the bits of one step do not know of each\n"
        "other; one position per step has none.\n\n" + table(["bits", *(f"T = {t}" for t in steps)], lines)
    )


def utr(path: Path) -> str:
    """What the proxy and the gold oracle say at every alpha."""
    if not path.exists():
        return ""
    content = json.loads(path.read_text())
    found, oracles = content["rows"], content["oracles"]
    head = [
        "algorithm",
        "alpha",
        "seeds",
        "KL, nats",
        "proxy",
        "gold",
        "J",
        "gap, nats",
        "diversity",
        "3-mers",
    ]
    lines = [["pretrained", "", "", *effect([found[0]["before"]])]]
    for name in order(found):
        for alpha in sorted({row["alpha"] for row in found if row["algorithm"] == name}):
            group = [row for row in found if (row["algorithm"], row["alpha"]) == (name, alpha)]
            lines.append([f"`{name}`", f"{alpha:g}", str(len(group)), *effect(group)])
    pearson = [f"{value:.4f} ± {error:.4f} ({name})" for name, (value, error) in oracles["pearson"].items()]
    return (
        f"\n5' UTRs: the oracles' Pearson correlation with {oracles['held_out']:,} held-out loads is\n"
        f"{' and '.join(pearson)}. Loads are in ribosomes, from the lowest to\n"
        "the highest of the seeds; a gap is given where samples of the pretrained model tell J*; 3-mers is\n"
        "the correlation of their frequencies with those of measured random UTRs.\n"
        "`python benchmarks/utr.py`, [`utr.json`](../benchmarks/results/utr.json).\n\n"
        + table(head, lines)
        + "\n![Quantiles of proxy and gold load before and after, KL, 3-mers and diversity](utr.png)\n"
        + "".join(collapse(found, name) for name in order(found))
    )


def effect(group: list[dict[str, Any]]) -> list[str]:
    """What samples are like, at one alpha or before."""
    gaps = [row["gap_nats"] for row in group if row.get("gap_nats") is not None]
    return [
        number([row["kl_nats"] for row in group], 2),
        number([row["reward"] for row in group], 2),
        number([row["gold"]["gold load"] for row in group], 2),
        number([row["objective"] for row in group], 2),
        number(gaps, 2) if gaps else "",
        number([row["diversity"] for row in group]),
        number([row["distances"]["3-mers of random UTRs"][0] for row in group], 2),
    ]


def collapse(found: list[dict[str, Any]], name: str) -> str:
    """What a report says where the KL counts for nothing."""
    least = min(row["alpha"] for row in found)
    said = next((row["said"] for row in found if (row["algorithm"], row["alpha"]) == (name, least)), [])
    texts = [text.replace("\xa0", " ") for text in said if "collapse" in text or "over-optimis" in text]
    return f"\nAt alpha = {least:g} the report of `{name}` says: *{' '.join(texts)}*\n" if texts else ""


def draw(problems: list[dict[str, Any]], path: Path) -> None:
    """A row per problem: the gap against seconds on the left, against reward calls on the right."""
    methods = sorted({run["method"] for problem in problems for run in problem["runs"]} - {STUDENT})
    colours = {name: f"C{k}" for k, name in enumerate(methods)} | {STUDENT: "black"}
    size = (10, 3 * len(problems) + 0.8)
    figure, axes = plt.subplots(len(problems), 2, figsize=size, layout="constrained", squeeze=False)
    for problem, (left, right) in zip(problems, axes, strict=True):
        for name, runs in by_method(problem).items():
            curve(left, runs, "seconds", 1, colours[name])
            if name == STUDENT:
                level = final_gap([run["curve"][-1] for run in runs])
                right.axhline(level, color="black", ls="--")
            elif not surrogates(runs):
                curve(right, runs, "calls", THOUSAND, colours[name])
        marks(left, right, problem)
        gaps = [row["gap_nats"] for run in problem["runs"] for row in run["curve"]]
        gaps += [row["gap_nats"] for row in problem["best_of_n"].values()]
        for axis, along in ((left, "processor seconds"), (right, "reward calls, thousands")):
            axis.set(xscale="log", yscale="log", xlabel=along, ylim=(0.7 * min(gaps), 1.3 * max(gaps)))
            for scale in (axis.xaxis, axis.yaxis):
                scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
                scale.set_major_formatter("{x:g}")
                scale.set_minor_locator(NullLocator())
            axis.spines[["top", "right"]].set_visible(False)
        left.set_ylabel("(J* - J) / alpha, nats")
    shown = [zip(*axis.get_legend_handles_labels()[::-1], strict=True) for axis in axes[:, 0]]
    named = {label: handle for pairs in shown for label, handle in pairs}
    figure.legend(named.values(), named, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def curve(axis: Axes, runs: list[dict[str, Any]], along: str, unit: int, colour: str) -> None:
    marked = list(zip(*(run["curve"] for run in runs), strict=False))  # the same share of training
    places = [statistics.mean(row[along] for row in group) / unit for group in marked]
    gaps = [[row["gap_nats"] for row in group] for group in marked]
    name = runs[0]["method"]
    means, style = [statistics.mean(group) for group in gaps], "--" if name == STUDENT else "-"
    axis.plot(places, means, style, color=colour, label=name)
    low, high = [min(group) for group in gaps], [max(group) for group in gaps]
    axis.fill_between(places, low, high, color=colour, alpha=0.2, lw=0)


def marks(left: Axes, right: Axes, problem: dict[str, Any]) -> None:
    """What needs no training, and what no training can reach."""
    best_of = list(problem["best_of_n"].values())
    for axis in (left, right):
        axis.set_title(title_of(problem), fontsize=9)
        axis.axhline(best_of[0]["gap_nats"], color="0.6", lw=1, label="p_pre")
        reachable = problem["optimum"]["gap_of_best_masked_nats"]
        axis.axhline(reachable, color="0.6", lw=1, ls=":", label="best masked policy")
    for row in best_of[1:]:
        place = DELIVERED * row["n"] / THOUSAND, row["gap_nats"]
        right.plot(*place, "kx", ms=5)
        right.annotate(f"best of {row['n']}", place, (3, 3), textcoords="offset points", fontsize=7)


def by_method(problem: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    names = dict.fromkeys(run["method"] for run in problem["runs"])
    return {name: [run for run in problem["runs"] if run["method"] == name] for name in names}


def surrogates(runs: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [run["surrogate"] for run in runs if "surrogate" in run]


def final_gap(found: list[dict[str, Any]]) -> float:
    return statistics.mean(row["gap_nats"] for row in found)


def title_of(problem: dict[str, Any]) -> str:
    landscape, data, alpha = problem["problem"].split("-")
    return f"{landscape.upper()}, pretrained on {DATA[data]}, alpha = {alpha}"


def number(values: list[float], digits: int = 3) -> str:
    """One number, or the lowest and the highest."""
    low, high = (f"{value:.{digits}f}".replace("inf", "infinite") for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def share(values: list[float]) -> str:
    return number([100 * value for value in values], 1) + " %"


if __name__ == "__main__":
    main()
