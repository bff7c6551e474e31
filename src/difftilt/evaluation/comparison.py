"""Several runs side by side: what each setting reached over its seeds, and what it spent."""

import math
import os
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from markupsafe import Markup

from difftilt.evaluation.estimate import Estimate, mean
from difftilt.evaluation.groups import Group, Problem, common, group, labels, problem_label
from difftilt.evaluation.optimum import optimum
from difftilt.evaluation.plots import LINES, Line, Point, comparison, frontier
from difftilt.evaluation.run_folder import Run, as_float, estimate, read_run
from difftilt.evaluation.words import count, duration, page, save_page

NAME = "comparison.html"
DIFFERENT = 4.0  # standard errors between two J's of one pretrained model that chance does not explain
At = Callable[[Run, Mapping[str, Any]], float]  # what a run had spent by one of its rounds


@dataclass(frozen=True)
class Entry:
    """What one group of runs reached.

    Args:
        label: What tells it from the other groups.
        error_over: What its error bars are over, in words.
        behind: How far its J is below the best one; None where J's cannot be ranked.
        reward_calls: The mean of its runs.
        seconds: As `reward_calls`.
    """

    label: str
    group: Group
    error_over: str
    reward: Estimate
    kl: Estimate
    objective: Estimate
    behind: Estimate | None
    reward_calls: float
    seconds: float

    def row(self, problem: str, rank: int | None) -> dict[str, Any]:
        """The entry as plain numbers."""
        runs = self.group.runs
        numbers = {"reward": self.reward, "kl_nats": self.kl, "objective": self.objective}
        return {
            "label": self.label,
            "problem": problem,
            "rank": rank,
            "alpha": [run.alpha for run in runs],
            "seeds": [run.info.get("seed") for run in runs],
            "error_over": self.error_over,
            **{name: number.value for name, number in numbers.items()},
            **{f"{name}_se": number.se for name, number in numbers.items()},
            "reward_calls": self.reward_calls,
            "seconds": self.seconds,
            "folders": [str(run.folder) for run in runs],
        }


@dataclass(frozen=True)
class Table:
    """The groups that solve one problem, the best first, and their courses as drawings."""

    problem: str
    entries: Sequence[Entry]
    ranked: bool
    limit: Estimate | None
    charts: Sequence[tuple[str, Markup]]


def compare(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Reads run folders and writes one self-contained page, `comparison.html`, into the folder `out`.

    Runs that differ in nothing but their seed are one row. Its errors are standard errors over seeds; of a
    single run they are over samples, and say nothing about another seed. Only J's of one problem are ranked:
    one recipe, one reward and one alpha.

    Metrics hold no times, so that a course against seconds spreads the rounds evenly over those of the run.

    Returns:
        `rows`, one mapping per group of runs, `notes`, sentences on what cannot be compared, and `page`.

    Raises:
        ValueError: If a folder is not that of a run, if none of them is finished, or if two are copies.
    """
    runs, notes = _finished(folders)
    groups = group(runs)
    problems = list(dict.fromkeys(g.problem for g in groups))
    tables = [
        _table(problem_label(problem, problems), [g for g in groups if g.problem == problem])
        for problem in problems
    ]
    notes += _notes(tables, problems, runs)
    text = page(
        "comparison.html", tables=tables, notes=notes, shared=common(groups), count=count, duration=duration,
        most=max(len(table.entries) for table in tables), runs=len(runs), colours=LINES,
        dashes=("solid", "dashed", "dotted"),
        link=lambda run: os.path.relpath(run.folder / "report.html", Path(out).resolve()),
    )  # fmt: skip
    path = Path(out) / NAME
    save_page(path, text)
    rows = [
        entry.row(table.problem, place if table.ranked else None)
        for table in tables
        for place, entry in enumerate(table.entries, 1)
    ]
    return {"rows": rows, "notes": notes, "page": str(path)}


def _finished(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs that can be compared, and what is said of the others."""
    runs, notes = [], []
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        run = read_run(folder)
        if run.info.get("task") == "value":
            notes.append(f"{folder.name} is left out, since it holds a soft value and no tuned model.")
        elif "objective" in run.summary:
            runs.append(run)
        else:
            notes.append(
                f"{folder.name} is left out, since it is not finished:"
                f" difftilt resume {shlex.quote(str(folder))}."
            )
    if not runs:
        raise ValueError(
            f"got {len(folders)} run folders, none of them of a finished run; finish at least one with"
            " difftilt resume FOLDER"
        )
    return runs, notes


def _table(problem: str, groups: Sequence[Group]) -> Table:
    """One problem's groups, the best J first where J's can be ranked."""
    ranked = len({run.alpha for g in groups for run in g.runs}) == 1
    exact = _all_exact([run for g in groups for run in g.runs])
    entries = [_entry(g, label, exact) for g, label in zip(groups, labels(groups), strict=True)]
    if ranked:
        entries.sort(key=lambda entry: -entry.objective.value)
        best = entries[0].objective
        behind: list[Estimate | None] = [best - entry.objective for entry in entries]
        entries = [replace(e, behind=gap) for e, gap in zip(entries, [None, *behind[1:]], strict=True)]
    found = optimum(groups[0].runs[0])
    limit = found.objective if found and found.exact and ranked else None
    charts = [_frontier(entries), *_courses(entries, limit and limit.value)]
    return Table(problem, entries, ranked, limit, charts)


def _entry(g: Group, label: str, exact: bool) -> Entry:
    """The means of a group; the errors are over its runs, or over the samples of a single run."""
    summaries = [run.summary for run in g.runs]
    several = len(summaries) > 1
    samples = summaries[0].get("samples")

    objectives = (
        [Estimate(as_float(row["exact"]["J"]), 0.0) for row in summaries]
        if exact
        else [_known(row, "objective") for row in summaries]
    )
    return Entry(
        label,
        g,
        f"{len(summaries)} seeds" if several else f"{samples} samples" if samples else "samples",
        _over_seeds([_known(row, "reward") for row in summaries]),
        _over_seeds([_known(row, "kl_nats") for row in summaries]),
        _over_seeds(objectives),
        None,
        statistics.fmean(as_float(row.get("reward_calls")) for row in summaries),
        statistics.fmean(as_float(row.get("seconds")) for row in summaries),
    )


def _over_seeds(numbers: Sequence[Estimate]) -> Estimate:
    """The mean of several runs; a single one keeps its own error."""
    return mean([number.value for number in numbers]) if len(numbers) > 1 else numbers[0]


def _known(row: Mapping[str, Any], name: str) -> Estimate:
    return estimate(row, name) or Estimate(float("nan"))


def _all_exact(runs: Sequence[Run]) -> bool:
    return all((run.summary.get("exact") or {}).get("J") is not None for run in runs)


def _frontier(entries: Sequence[Entry]) -> tuple[str, Markup]:
    """Reward against KL, in the order of the table."""

    def point(reward: Estimate, kl: Estimate) -> Point:
        x, y = ((number.value, number.se if math.isfinite(number.se) else 0.0) for number in (kl, reward))
        return Point(x, y)

    before = estimate(entries[0].group.runs[0].before, "reward")
    start = None if before is None else point(before, Estimate(0.0, 0.0))
    drawing = frontier([point(entry.reward, entry.kl) for entry in entries], start, "KL, nats", "reward")
    return "Reward against KL", Markup(drawing)


def _courses(entries: Sequence[Entry], limit: float | None) -> Iterator[tuple[str, Markup]]:
    """J against reward calls and against seconds, in the order of the table."""

    def calls(run: Run, row: Mapping[str, Any]) -> float:
        return as_float(row.get("reward_calls"))

    def seconds(run: Run, row: Mapping[str, Any]) -> float:
        rounds = run.summary.get("rounds") or len(run.rounds)
        return as_float(run.summary.get("seconds")) * (as_float(row["round"]) + 1) / rounds

    for over, at in (("reward calls", calls), ("seconds", seconds)):
        drawing = comparison([_line(entry.group.runs, at) for entry in entries], over, limit)
        yield f"J against {over}", Markup(drawing)


def _line(runs: Sequence[Run], at: At) -> Line:
    """The course of J in the rounds that all runs have, with its error over seeds, or over a batch."""
    courses = [
        {row["round"]: (row, found) for row in run.rounds if (found := run.objective(row))} for run in runs
    ]
    rounds = [r for r in courses[0] if all(r in course for course in courses)]
    x, means = [], []
    for r in rounds:
        x.append(statistics.fmean(at(run, course[r][0]) for run, course in zip(runs, courses, strict=True)))
        numbers = [course[r][1] for course in courses]
        means.append(_over_seeds(numbers))
    return Line(x, [number.value for number in means], [number.se for number in means])


def _notes(tables: Sequence[Table], problems: Sequence[Problem], runs: Sequence[Run]) -> Iterator[str]:
    """What the reader must know before any two numbers are compared."""
    if len(problems) > 1:
        yield (
            f"These runs solve {len(problems)} different problems ("
            + "; ".join(table.problem for table in tables)
            + "). J depends on the reward and on alpha, so that their J's are not in one ranking: each"
            " problem has a table of its own."
        )
    for table in tables:
        known = [run for entry in table.entries for run in entry.group.runs if "objective" in run.before]
        pairs = combinations([_known(run.before, "objective") for run in known], 2)
        if any(abs(gap.value) > DIFFERENT * gap.se for gap in (a - b for a, b in pairs)):
            yield (
                f"{table.problem}: J before tuning differs between runs whose settings agree, so that the"
                " pretrained model or the reward was not the same; do not rank these runs by J."
            )
        alphas = [run.alpha or 0.0 for entry in table.entries for run in entry.group.runs]
        if not table.ranked:
            yield (
                f"{table.problem}: alpha was moved to meet the target and ended between {min(alphas):.3g} and"
                f" {max(alphas):.3g}, so that the J's are of different problems and are not ranked; compare"
                " the rewards, and see that the KLs agree."
            )
    alone = [(table, entry) for table in tables for entry in table.entries if len(entry.group.runs) == 1]
    if alone:
        many = len(tables) > 1
        single = [f"{entry.label} ({table.problem})" if many else entry.label for table, entry in alone]
        yield (
            f"One seed only: {'; '.join(single)}. The error there is over samples, and tells nothing about"
            " how another seed would end."
        )
    places = {(run.info.get("device"), run.info.get("threads"), run.info.get("processes")) for run in runs}
    if len(places) > 1:
        yield "The runs had different devices, threads or processes: their seconds cannot be compared."
