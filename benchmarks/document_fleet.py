"""Writes what was simulated of fleets of reward workers into docs/cluster.md, between its markers.

python benchmarks/document_fleet.py

and draws docs/fleet.png.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from document import rows, table, write_page
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from difftilt.algorithms.ppo import PPO

HERE = Path(__file__).parent
PAGE, PICTURE = HERE.parent / "docs" / "cluster.md", HERE.parent / "docs" / "fleet.png"
DEFAULT = "256"  # chains per update, as a key
CLIPPED = PPO().epochs * PPO().minibatches - 1  # gradient steps behind: PPO's last one, at its defaults

Row = dict[str, Any]


def main() -> None:
    write_page(PAGE, measured(HERE / "results"))
    draw(some(rows(HERE / "results" / "fleet.json"), "fleets"), PICTURE)


def measured(results: Path) -> str:
    """The section, as Markdown."""
    found, ray = rows(results / "fleet.json"), rows(results / "reward_workers_ray.json")
    (costs,), fleets = some(found, "costs"), some(found, "fleets")
    return "\n".join(
        [
            started(ray),
            checked(some(found, "check"), costs, results),
            shown(fleets, costs),
            tolerated(fleets),
        ]
    )


def started(found: list[Row]) -> str:
    """What a cluster in one machine was measured to do."""
    batches = [row for row in found if row["nodes"] == 2]
    alone = [row for row in found if row["nodes"] == 1]
    killed, whole = ([row for row in batches if row["killed"] == kill] for kill in (True, False))
    first = batches[0]
    again = [sum(n for k, n in row["samples_by_times_begun"].items() if int(k) > 1) for row in killed]
    most = max(int(k) for row in batches for k in row["samples_by_times_begun"])
    bad = sum(row["wrong"] + row["not_accounted_for"] for row in batches)
    paid = all(row["answers_in_the_ledger"] == row["good"] for row in batches)
    return (
        f"Measured, two nodes of two workers in one machine, {first['calls']:,} calls of"
        f" {first['call_seconds']:g} s of which {first['faulty']} raise, hang or exit, in turn with and"
        f" without one node killed, {len(killed)} times each, on 2 cores under a load of"
        f" {first['load_before']:.1f}:\n\n"
        f"- Of {sum(row['calls'] for row in batches):,} answers {bad} were wrong or missing, and the ledger"
        f" held {'each good one once' if paid else 'NOT each good one once'}. After a loss at most"
        f" {max(again)} samples were begun anew, and none was begun more than {most} times.\n"
        f"- Times were {spread(whole)} times those of the ideal schedule, and {spread(killed)} where a node"
        " was lost (the ideal schedule loses it too, and notices at once).\n"
        f"- First answers of a pool on nodes that run came after {seconds(batches, 'first_answers_seconds')},"
        f" of a cluster of its own (`ray://2`) after {seconds(alone, 'first_answers_seconds')}; to leave took"
        f" {seconds(batches, 'closed_seconds')} and {seconds(alone, 'closed_seconds')}.\n\n"
        "`python benchmarks/reward_workers.py --only ray`. The driver's part is below.\n"
    )


def checked(found: list[Row], costs: Row, results: Path) -> str:
    """The assumptions, and what was held against real runs."""
    lines = []
    for workers in sorted({row["workers"] for row in found}):
        group = [row for row in found if row["workers"] == workers]
        cells = [
            f"{statistics.median(row[key] for row in group):.2f}" for key in ("seconds", "predicted_seconds")
        ]
        ratios = [row["ratio"] for row in group]
        lines.append([str(workers), *cells, f"{min(ratios):.3f} to {max(ratios):.3f}"])
    machine = json.loads((results / "fleet.json").read_text())
    fleet = some(rows(results / "fleet.json"), "fleets")[0]
    return (
        "### Larger fleets, by simulation\n\n"
        "No one here has 100,000 workers, so `benchmarks/fleet.py` simulates them, call by call. What it is"
        f" made of was measured on this machine ({machine['cores']} cores, load {costs['load_before']:.1f}):"
        f" the asking process spends {1e3 * costs['driver']:.2f} ms on a chain"
        f" ({1e3 * costs['driver_of_ray']:.2f} ms if Ray places its worker; both with 16 workers), a call"
        f" takes {1e3 * costs['overhead']:.1f} ms longer in a worker, and one that died is replaced within"
        f" {1e3 * costs['replace']:.0f} ms: medians over five batches of calls of equal length. With these"
        " numbers it predicts how long real workers take for calls of log-normal length of which some die or"
        " hang:\n\n"
        + table(["workers", "measured, s", "predicted, s", "predicted / measured, lowest to highest"], lines)
        + "\n"
        f"{found[0]['samples']} calls each, medians over {len(found) // len(lines)} draws of them, in turn."
        " The lengths themselves are given to the simulation, so that luck is no part of this.\n\n"
        "Assumed of the fleets, and not measured: calls are log-normal with a deviation of the logarithm of"
        f" 1, a mean of a minute and a limit of {fleet['limit']:.0f} s; {fleet['deaths']:.0%} of them end"
        f" their process and are made again; {fleet['slow']:.0%} of the workers are {fleet['slower']:g} times"
        " slower; the network, drawing and the update take no time, and neither do nodes fail as a whole.\n"
    )


def shown(found: list[Row], costs: Row) -> str:
    """Some of the fleets, and the picture of all."""
    lines = []
    for row in found:
        share = row["flight"] / row["workers"]
        if share not in ((1, 16) if row["barrier"] else (1, 8)):
            continue
        stale = [
            "0" if row["barrier"] else told(row["stale"][batch]) for batch in (str(row["workers"]), DEFAULT)
        ]
        lines.append(
            [
                f"{row['workers']:,}", f"{share:g}", "yes" if row["barrier"] else "no",
                f"{row['chains_per_second']:,.1f}", f"{row['utilisation']:.2f}",
                f"{row['driver_share']:.2f}", *stale,
            ]
        )  # fmt: skip
    head = ["workers", "in flight per worker", "barrier", "chains/s", "utilisation", "driver busy"]
    head += ["staleness, a chain per worker and update", f"staleness, {DEFAULT} chains per update"]
    ray, own = 1 / costs["driver_of_ray"], 1 / costs["driver"]
    return (
        "![Utilisation, and staleness in policy updates, against the chains in flight per worker, one line"
        " per number of workers](fleet.png)\n\n" + table(head, lines) + "\n"
        "With a barrier, those in flight are one batch of one policy, and the next is drawn when the last of"
        " them has its reward; without one, each reward makes room for the next chain. Staleness: policy"
        " updates between drawing a chain and using it, mean / 95 % / most. **The driver is the limit of"
        f" large fleets**: one process deals at most {ray:,.0f} chains per second through Ray ({own:,.0f} to"
        f" processes of its own machine), so it keeps 100,000 workers busy only if calls take"
        f" {100_000 / ray:.0f} s or more on average, and 10,000 if they take {10_000 / ray:.0f} s; for"
        " quicker ones give several processes their share (torchrun).\n"
    )


def tolerated(found: list[Row]) -> str:
    """Which algorithms may use how much of it."""
    sizes = sorted({row["workers"] for row in found})
    lines = []
    for workers in sizes:
        group = [row for row in found if row["workers"] == workers]
        waits = [f"{row['utilisation']:.2f}" for row in group if row["barrier"]]
        free = [row for row in group if not row["barrier"]]
        fits = [row for row in free if row["stale"][str(workers)]["p95"] <= CLIPPED]
        best, most = least(fits), least(free)
        lines.append(
            [
                f"{workers:,}", " / ".join(waits),
                f"{best['utilisation']:.2f} at {best['flight'] / workers:g} per worker",
                f"{most['utilisation']:.2f} at {most['flight'] / workers:g} per worker",
            ]
        )  # fmt: skip
    head = ["workers", "on-policy, batches of 1 / 4 / 16 chains per worker", "clipped off-policy", "replay"]
    return (
        "What an algorithm may use of it, as utilisation:\n\n" + table(head, lines) + "\n"
        "- **On-policy** (`ppo` with one epoch of one minibatch, `grpo` alike): the gradient is that of the"
        " policy that drew the chains, so staleness must be 0: a barrier, and large batches.\n"
        "- **Clipped off-policy** (`ppo`, `grpo`): at its defaults PPO's last gradient step on a batch uses"
        f" chains that are {CLIPPED} gradient steps old, and the clip holds the ratio; the column takes as"
        " much as that for 95 % of the chains. Beyond, more of them are clipped and teach nothing; the"
        " monitor of clipped shares tells.\n"
        "- **Replay** (`trajectory-balance`, `path-consistency` with `replay`): the objective holds for"
        " chains of any policy, so no age is wrong, only less useful.\n\n"
        "difftilt itself trains with the barrier, and with `--reward-overlap` draws one part of a batch"
        " while another is scored. The rows without a barrier say what asynchronous training could gain; it"
        " is not built.\n"
    )


def least(found: list[Row]) -> Row:
    """The fewest chains in flight that keep workers as busy as any number does, but for one per cent."""
    top = max(row["utilisation"] for row in found)
    return next(row for row in found if row["utilisation"] > top - 0.01)


def draw(found: list[Row], path: Path) -> None:
    """Utilisation and staleness against the chains in flight."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, workers in enumerate(sorted({row["workers"] for row in found})):
        group = [row for row in found if row["workers"] == workers]
        free = [row for row in group if not row["barrier"]]
        waits = [row for row in group if row["barrier"]]
        colour, name = f"C{number}", f"{workers:,} workers"
        line(left, free, [row["utilisation"] for row in free], colour, "o-", name)
        line(left, waits, [row["utilisation"] for row in waits], colour, "s:", None)
        for batch, style in ((str(workers), "o-"), (DEFAULT, "x--")):
            line(right, free, [row["stale"][batch]["p95"] for row in free], colour, style, None)
    right.axhline(CLIPPED, color="grey", lw=1)
    right.annotate(f"PPO's own, {CLIPPED}", (16, CLIPPED), ha="right", va="bottom", fontsize=8)
    left.set(xlabel="chains in flight per worker", ylabel="utilisation", ylim=(0, 1), xscale="log")
    right.set(xlabel="chains in flight per worker", ylabel="staleness of 95 % of chains, updates")
    right.set(xscale="log", yscale="symlog", ylim=(0, None))
    left.set_title("without a barrier (lines), with one (dotted)", fontsize=9)
    right.set_title(f"a chain per worker and update (lines), {DEFAULT} chains (dashed)", fontsize=9)
    for axis in (left, right):
        axis.set_xticks([0.5, 1, 2, 4, 8, 16], ["0.5", "1", "2", "4", "8", "16"], minor=False)
        axis.minorticks_off()
    left.legend(frameon=False, fontsize=8, loc=(0.35, 0.73))
    figure.savefig(path, dpi=110)


def line(
    axis: Axes, found: list[Row], values: list[float], colour: str, style: str, name: str | None
) -> None:
    shares = [row["flight"] / row["workers"] for row in found]
    axis.plot(shares, values, style, color=colour, label=name, ms=4)


def some(found: list[Row], task: str) -> list[Row]:
    return [row for row in found if row["task"] == task]


def told(stale: dict[str, float]) -> str:
    return f"{stale['mean']:.1f} / {stale['p95']:.0f} / {stale['max']}"


def spread(found: list[Row]) -> str:
    ratios = [row["ratio_of_such_calls"] for row in found]
    return f"{min(ratios):.2f} to {max(ratios):.2f}"


def seconds(found: list[Row], key: str) -> str:
    values = [row[key] for row in found]
    return f"{min(values):.1f} to {max(values):.1f} s"


if __name__ == "__main__":
    main()
