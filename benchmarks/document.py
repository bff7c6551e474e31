"""Writes what was measured into docs/algorithms.md, between its markers, from the other benchmarks' JSON.

python benchmarks/document.py
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import growth

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "algorithms.md"
START, END = "<!-- measured -->\n", "<!-- /measured -->"
BARS = {"gmm-x": 0.005, "gmm-sin": 0.015, "lqg16": 0.01, "lqg16-flow": 0.01}


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))


def write_page(page: Path, content: str) -> None:
    """Puts what was measured between the markers of a page."""
    before, _, after = split_page(page)
    page.write_text(before + content + after)


def split_page(page: Path) -> tuple[str, str, str]:
    """A page up to what was measured, that, and what follows."""
    text = page.read_text()
    start, end = text.index(START) + len(START), text.index(END)
    return text[:start], text[start:end], text[end:]


def measured(results: Path) -> str:
    """All tables, as Markdown."""
    parts = [exact(rows(results / "exact.json")), defaults(rows(results / "defaults.json"))]
    parts.append(equal_kl(rows(results / "digits_equal_kl.json")))
    parts.append(gmm25(rows(results / "gmm25.json")))
    parts.append(rare_modes(rows(results / "rare_modes.json")))
    parts.append(limits(rows(results / "limits.json")))
    parts.append(memory(rows(results / "memory.json")))
    parts.append(cost(rows(results / "cost.json")))
    return "\n".join(part for part in parts if part)


def exact(found: list[dict[str, Any]]) -> str:
    """The gaps on chains whose optimum is known."""
    head = ["algorithm", *(f"{task} (bar {bar})" for task, bar in BARS.items()), "slowest, s"]
    lines = []
    for name in order(found):
        cells, seconds = [], []
        for task in BARS:
            group = [row for row in found if (row["algorithm"], row["task"]) == (name, task)]
            seconds += [row["cpu_seconds"] for row in group]
            excess, gap = ([row[key] for row in group] for key in ("excess_nats", "gap_nats"))
            cells.append(f"{spread(excess)} ({statistics.mean(gap):.4f})" if group else "")
        lines.append([f"`{name}`", *cells, f"{max(seconds):.0f}"])
    return (
        "Excess over the best policy with the reference's variances, in nats: lowest to highest of up to\n"
        "three seeds, and in brackets the mean gap to J*, the best of all policies; by quadrature or\n"
        "linear algebra, not sampled; CPU seconds of one thread. `python benchmarks/exact.py`,\n"
        "[`exact.json`](../benchmarks/results/exact.json).\n\n" + table(head, lines)
    )


def defaults(found: list[dict[str, Any]]) -> str:
    """The gaps at defaults, on rewards that nothing was chosen by."""
    if not found:
        return ""
    tasks = sorted({row["task"] for row in found}, reverse=True)
    counts = {task: len({row["seed"] for row in found if row["task"] == task}) for task in tasks}
    head = ["algorithm"]
    for task, count in counts.items():
        head += [f"{task}, median of {count}", "mean", "worst"]
    lines = []
    for name in order(found):
        mine, cells = [row for row in found if row["algorithm"] == name], []
        for task in tasks:
            gaps = [row["excess_nats"] for row in mine if row["task"] == task]
            gaps = [math.inf if gap is None else gap for gap in gaps]
            numbers = (statistics.median(gaps), statistics.mean(gaps), max(gaps)) if gaps else ()
            fewer = f" (of {len(gaps)})" * (len(gaps) < counts[task])
            cells += [f"{gap:.4f}{fewer}" for gap in numbers] or [""] * 3
        lines.append([f"`{name}`", *cells, f"{max(row['cpu_seconds'] for row in mine):.0f}"])
    return (
        "\nRewards of a random family, at defaults but for the number of rounds, 200 to 1,200 of 512, which\n"
        "was set for each task by the seeds that need most: the same excess, exact, in nats (bars: median\n"
        "0.01, worst 0.03; `nft` has a bias of its own, and `reward-weighted` a small one). Defaults were\n"
        "chosen on molecules, on rewards of other seeds, 100 to 102, and on seeds 0, 3, 8 and 18 of these,\n"
        "and 2 of lqg16.\n"
        "`python benchmarks/defaults.py`, [`defaults.json`](../benchmarks/results/defaults.json) with"
        " every reward.\n\n" + table([*head, "slowest, s"], lines)
    )


def equal_kl(found: list[dict[str, Any]]) -> str:
    """What each algorithm makes of four nats on the digits."""
    found = [row for row in found if row["task"] == "equal-kl"]
    columns = ("kl_nats", "reward", "gold", "diversity")
    head = ["algorithm", "KL, nats", "reward", "gold accuracy", "diversity", "reward calls"]
    head += ["network calls, forward / backward", "seconds"]
    lines = []
    for name in order(found):
        group = [row for row in found if row["algorithm"] == name]
        cells = [f"{mean(group, key)} ± {deviation(group, key)}" for key in columns]
        calls = " / ".join(
            f"{statistics.mean(row['network_calls'][way] for row in group) / 1e3:,.0f} k"
            for way in ("forward", "backward")
        )
        spent = statistics.mean(row["seconds"] for row in group)
        lines.append([f"`{name}`", *cells, f"{group[0]['reward_calls']:,}", calls, f"{spent:.0f}"])
    if not lines:
        return ""
    return (
        "\nDigits, reward log p(3 | x), a target of 4 nats: mean and deviation over three seeds; the\n"
        "gold classifier is never trained on. `python benchmarks/digits_equal_kl.py`,\n"
        "[`digits_equal_kl.json`](../benchmarks/results/digits_equal_kl.json).\n\n"
        + table(head, lines)
        + "\nThe same reward at five alphas, 0.03 to 3 (tenfold for `reward-weighted`, which tilts each\n"
        "round), 15 rounds, one seed:\n\n"
        "![Reward and gold accuracy against the KL in nats, one line per algorithm](frontier.png)\n"
    )


def gmm25(found: list[dict[str, Any]]) -> str:
    """The published task of 25 Gaussians."""
    head = ["algorithm", "seed", "total variation of the components' weights", "path KL (best 1.1546), nats"]
    head += ["J (best 0)", "reward calls", "seconds"]
    lines = []
    for row in found:
        kl, gain = (f"{row[key]:.3f} ± {row[key + '_se']:.3f}" for key in ("kl_nats", "objective"))
        calls, seconds = f"{row['reward_calls']:,}", f"{row['seconds']:.0f}"
        cells = [f"`{row['algorithm']}`", str(row["seed"]), f"{row['mode_tv']:.3f}"]
        lines.append([*cells, kl, gain, calls, seconds])
    if not lines:
        return ""
    return (
        "\n25 Gaussians, of which 9 shall remain (Venkatraman et al., 2024): 20,000 samples at the end.\n"
        "`python benchmarks/gmm25.py`, [`gmm25.json`](../benchmarks/results/gmm25.json) with the curves.\n\n"
        + table(head, lines)
    )


def rare_modes(found: list[dict[str, Any]]) -> str:
    """Local search beside PPO, on landscapes."""
    lines = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in found:
        groups[row["problem"], row["method"]].append(row)
    for (problem, method), group in groups.items():
        ends = [row["curve"][-1] for row in group]
        gaps, missed, cover = (
            [end[key] for end in ends] for key in ("gap_nats", "missed", "forward_kl_nats")
        )
        cells = [f"{statistics.mean(gaps):.3f} ({min(gaps):.3f} to {max(gaps):.3f})"]
        cells += [f"{statistics.mean(cover):.3f}", f"{statistics.mean(missed):.1%}"]
        for key, form in (("found", ".1%"), ("distinct", ",.0f")):
            cells.append(format(statistics.mean(row[key] for row in group), form) if key in group[0] else "")
        calls = statistics.mean(end["calls"] for end in ends)
        lines.append([problem, f"`{method}`", str(len(group)), *cells, f"{calls:,.0f}"])
    if not lines:
        return ""
    head = ["problem", "method", "seeds", "gap, nats", "KL(p_r \\|\\| p)", "missed"]
    head += ["found", "distinct", "calls"]
    return (
        "\nModes that the model rarely draws: (J* - J) / alpha, mean (lowest to highest), after 30\n"
        "processor seconds; the share of p_r on sequences that the policy makes less than a tenth as\n"
        "often, and on those that were scored; sequences scored, each once and each time. `coverage` is\n"
        "local search with that finish, `replay` imitates for half of the time, `student` is taught exact\n"
        "samples of p_r. Two or three other programs ran beside it on two cores.\n"
        "`python benchmarks/rare_modes.py`, [`rare_modes.json`](../benchmarks/results/rare_modes.json).\n\n"
        + table(head, lines)
    )


def limits(found: list[dict[str, Any]]) -> str:
    """The excess of biased methods on the way to the limit in which they are right."""
    cases = {"truncation": ("last", "K, of 20"), "reversal": ("steps", "T"), "blindness": ("alpha", "alpha")}
    lines = []
    for bias, (key, label) in cases.items():
        group = [row for row in found if row["bias"] == bias]
        for name in order(group):
            for at in sorted({row[key] for row in group}):
                excess = [row["excess_nats"] for row in group if (row["algorithm"], row[key]) == (name, at)]
                lines.append([f"`{name}`", label, str(at), spread(excess)])
    if not lines:
        return ""
    return (
        "\nMethods with a bias of their own, on the way to where it should vanish: excess, nats.\n"
        "Backprop through the last K transitions; methods that noise samples again, on chains of T steps;\n"
        "DPOK, blind to the KL that a decision causes later, on `gmm-x` at larger alphas.\n"
        "`python benchmarks/limits.py`, [`limits.json`](../benchmarks/results/limits.json).\n\n"
        + table(["algorithm", "limit", "at", "excess"], lines)
    )


def memory(found: list[dict[str, Any]]) -> str:
    """Peak bytes of a gradient step, and how they grow with T."""
    lines = []
    for name in order(found):
        for recompute in (True, False):
            group = [row for row in found if (row["algorithm"], row["recompute"]) == (name, recompute)]
            small, large = sorted(group, key=lambda row: row["steps"])
            beyond = [row["peak_bytes"] - row["state_bytes"] for row in (small, large)]
            peaks = [f"{row['peak_bytes'] / 1e6:.2f}" for row in (small, large)]
            lines.append([f"`{name}`", str(recompute), *peaks, f"{beyond[1] / beyond[0] - 1:+.1%}"])
    if not lines:
        return ""
    head = ["algorithm", "recompute", "peak at T = 10, MB", "at T = 100", "growth beyond the stored states"]
    return (
        "\nPeak of live tensors during one gradient step: `python benchmarks/memory.py`,\n"
        "[`memory.json`](../benchmarks/results/memory.json).\n\n" + table(head, lines)
    )


def cost(found: list[dict[str, Any]]) -> str:
    """Exponents of time and memory in each size, beside those of the passes alone."""
    if not found:
        return ""
    text = (
        "\nCost as work grows: k of cost ~ size^k, by least squares over the three largest of four sizes,\n"
        "each twice the one before, with the standard error of the fit; in brackets that of the bare\n"
        "network passes, and of the memory that the largest of them takes beside the states of the chains.\n"
        "Medians of CPU seconds of a round, of one thread on a machine with other load: `python\n"
        "benchmarks/cost.py`, [`cost.json`](../benchmarks/results/cost.json).\n\n"
        "![Time and memory of a round against batch, steps, width and length](cost.png)\n"
    )
    for name, (key, limit) in growth.COSTS.items():
        head = [f"{name}: chain", "method", *growth.SIZES.values(), "over the passes", "at 8 times the batch"]
        lines = []
        for chain in dict.fromkeys(row["chain"] for row in found):
            for method, group in growth.methods(found, chain).items():
                cells = []
                for size in growth.SIZES:
                    points = growth.sweep(group, size)
                    k, error = growth.exponent(points, size, key)
                    cells.append(f"{k:.2f} ± {error:.2f} ({growth.exponent(points, size, limit)[0]:.2f})")
                batch = growth.sweep(group, "batch")
                cells += [f"{row[key] / row[limit]:.2f}" for row in (batch[0], batch[-1])]
                lines.append([chain, f"`{method}`", *cells])
        text += "\n" + table(head, lines)
    return text


def rows(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["rows"] if path.exists() else []


def order(found: Iterable[dict[str, Any]]) -> list[str]:
    """The algorithms, in the order of their first rows."""
    seen: dict[str, None] = defaultdict()
    for row in found:
        seen[row["algorithm"]] = None
    return list(seen)


def spread(values: list[float]) -> str:
    low, high = (f"{value:.4f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def mean(group: list[dict[str, Any]], key: str) -> str:
    return f"{statistics.mean(row[key] for row in group):.3f}"


def deviation(group: list[dict[str, Any]], key: str) -> str:
    return f"{statistics.stdev([row[key] for row in group]):.3f}" if len(group) > 1 else "?"


def table(head: list[str], lines: list[list[str]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in every)


if __name__ == "__main__":
    main()
