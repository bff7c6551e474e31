"""The page that shows what a run achieved, made from its folder alone."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from difftilt.evaluation.best import best_samples
from difftilt.evaluation.estimate import Change, Estimate
from difftilt.evaluation.monitors import Monitors
from difftilt.evaluation.optimum import optimum
from difftilt.evaluation.outcome import Outcome
from difftilt.evaluation.run_folder import Run, Samples, as_float, estimate, read_pictures, read_run
from difftilt.evaluation.verdict import findings, headline
from difftilt.evaluation.words import count, date, duration, figures, flat, lines, page, save_page

# the title of a curve, the number that it shows, and over what
CURVES = (
    ("Reward", "reward", "round"),
    ("KL to the pretrained model, nats", "kl_nats", "round"),
    ("J = reward less alpha KL", "objective", "round"),
    ("Reward after the diversity filter", "filtered_reward", "round"),
    ("J against reward calls", "objective", "reward calls"),
    ("alpha, moved to meet the target KL", "alpha", "round"),
)


def write_report(folder: Path | str) -> Path:
    """Writes `report.html` into a run folder and returns its path; an unfinished run gets a page too.

    Raises:
        ValueError: If the folder is not that of a run.
    """
    run, path = read_run(Path(folder)), Path(folder) / "report.html"
    save_page(path, render(run), ours="difftilt" in run.info.get("versions", {}))
    return path


def outcome(run: Run) -> Outcome:
    """The numbers that the verdict judges: the summary's, or those of the training rounds so far."""
    after, before = run.summary, run.before
    finished = "reward" in after
    if not finished and run.rounds:
        before, after = run.before or run.rounds[0], run.rounds[-1]
    gold = {_title(name): Change(old, new) for name, old, new in _scores(before, after, "gold")}
    return Outcome(
        alpha=run.alpha,
        reward=_change(before, after, "reward"),
        kl=estimate(after, "kl_nats"),
        objective=_exact_objective(before, after) or _change(before, after, "objective"),
        gold=gold,
        is_proxy=_is_proxy(run),
        diversity=_change(before, after, "diversity"),
        family=_change(before, after, "family_share"),
        family_name=after.get("family", ""),
        rounds=[found for row in run.rounds if (found := run.objective(row))],
        optimum=optimum(run),
        target_kl=run.target_kl,
        samples=len(run.samples["after"].get("reward", ())) or None,
        dropped=run.summary.get("dropped", 0),
        penalised=run.summary.get("penalised", 0),
        ess=[as_float(row["ess"]) for row in run.rounds if row.get("ess") is not None],
        warnings=run.summary.get("warnings", ()),
        finished=finished,
    )


def _exact_objective(before: Mapping[str, Any], after: Mapping[str, Any]) -> Change | None:
    """J without sampling, where a run knows it before and after."""
    old, new = ((row.get("exact") or {}).get("J") for row in (before, after))
    return None if old is None or new is None else Change(*(Estimate(as_float(x), 0.0) for x in (old, new)))


def _change(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> Change | None:
    old, new = estimate(before, name), estimate(after, name)
    return Change(old, new) if old and new else None


def _scores(
    before: Mapping[str, Any], after: Mapping[str, Any], kind: str
) -> Iterable[tuple[str, Estimate, Estimate]]:
    """Name and numbers of the gold scores, or of the parts of the reward, that are known before and after."""
    for name, value in (after.get(kind) or {}).items():
        if name in (before.get(kind) or {}):
            se = [as_float((row.get(f"{kind}_se") or {}).get(name)) for row in (before, after)]
            yield name, Estimate(as_float(before[kind][name]), se[0]), Estimate(as_float(value), se[1])


def render(run: Run) -> str:
    """The page. Everything that a user or a run wrote is escaped by the template."""
    result = outcome(run)
    said = findings(result)
    policies, exact = _exact(run)
    distances = [row.get("distances") or {} for row in (run.before, run.summary)]
    return page(
        "report.html",
        run=run,
        title=f"{run.info.get('recipe', 'run')} · {run.folder.resolve().name}",
        created=date(run.info.get("created")),
        command=lines(run.info.get("command")),
        result=result,
        target=f", of {result.target_kl:g} asked for" if result.target_kl is not None else "",
        first="pretrained" if run.before or result.finished else "first round",
        way=result.way and _percent(result.way),
        is_proxy=_is_proxy(run),
        deployed=_change(run.before, run.summary, "deployed_reward"),
        gap=estimate(run.summary, "deployed_gap"),
        parts={name: Change(*found) for name, *found in _scores(run.before, run.summary, "parts")},
        headline=headline(result),
        achieved=[finding.text for finding in said if finding.kind == "achieved"],
        watch=[finding.text for finding in said if finding.kind == "watch"],
        alarms=_alarms(run),
        costs=dict(_costs(run)),
        pictures=read_pictures(run.folder / "samples"),
        best=best_samples(run),
        curves=_curves(run, result),
        levels=bool(run.before),
        limits=_limits(result),
        histograms=_histograms(run.samples, _is_proxy(run)),
        distances={name: [_pair(row.get(name)) for row in distances] for name in distances[1]},
        note=run.summary.get("distances_note"),
        policies=policies,
        exact=exact,
        kl_note=(run.before | run.summary).get("kl_note"),
        exact_note=(run.before | run.summary).get("exact_note"),
        settings=dict(flat(run.settings)),
        machine=dict(_machine(run.info)),
    )


def _alarms(run: Run) -> list[str]:
    """What the monitors said, or would have said of a run from before there were any."""
    training = run.settings.get("training")
    planned = as_float(training.get("rounds")) if isinstance(training, Mapping) else 0.0
    return [f"{alarm}." for alarm in Monitors(run.before, planned, run.target_kl).see_all(run.steps)]


def _pair(number: Sequence[Any] | None) -> Estimate | None:
    """A number with its standard error, as JSON holds them."""
    return None if number is None else Estimate(*map(as_float, number))


def _percent(share: Estimate) -> str:
    """A share with its error, in percent; whole tenths where there is no error."""
    found = Estimate(100 * share.value, 100 * share.se)
    return str(found) if found.error else f"{found.value:.1f}"


def _is_proxy(run: Run) -> bool:
    """Whether the reward stands for a gold score, by what the recipe says."""
    return bool((run.before | run.summary).get("proxy_for"))


def _exact(run: Run) -> tuple[list[str], dict[str, list[str]]]:
    """The policies whose numbers are known exactly, and each number, one per policy.

    What was computed with another alpha than the one in force is left out: it has another optimum.
    """
    rows = {"pretrained": (run.before, "exact"), "tuned": (run.summary, "exact")}
    rows["best possible"] = (run.summary if "optimum" in run.summary else run.before, "optimum")
    known = {
        title: row[name]
        for title, (row, name) in rows.items()
        if row.get(name) and row.get("alpha", run.alpha) == run.alpha
    }
    names = dict.fromkeys(name for policy in known.values() for name in policy)
    return list(known), {name: [figures(policy.get(name)) for policy in known.values()] for name in names}


def _curves(run: Run, result: Outcome) -> list[tuple[str, Markup]]:
    """The title and the drawing of every curve that the log has the numbers for."""
    from difftilt.evaluation.plots import curve  # matplotlib loads slowly, and only pages need it

    limits = {"objective": result.optimum and result.optimum.objective.value, "kl_nats": result.target_kl}
    found = []
    parts = dict.fromkeys(name for row in run.rounds for name in row if name.startswith("part "))
    own = [(name, name, "reward calls") for name in parts if not name.endswith("_se")]
    for title, name, over in [*CURVES, *own]:
        key = over.replace(" ", "_")
        rows = [row for row in run.rounds if row.get(name) is not None and row.get(key) is not None]
        if rows and (name != "alpha" or result.target_kl is not None):
            numbers = [run.objective(row) if name == "objective" else estimate(row, name) for row in rows]
            columns = zip(*(number for number in numbers if number), strict=True)
            before = estimate(run.before, name) if name in ("reward", "objective") else None
            drawing = curve(
                [as_float(row[key]) for row in rows], *columns, before=before and before.value,
                limit=limits.get(name), over=over,
            )  # fmt: skip
            found.append((title, Markup(drawing)))
    return found


def _limits(result: Outcome) -> list[str]:
    """What the dotted lines in the curves are."""
    best = result.optimum
    level = f"best possible J, {best.objective}, {best.origin}" if best else ""
    target = f"target KL, {result.target_kl:g} nats" if result.target_kl is not None else ""
    return [text for text in (level, target) if text]


def _histograms(samples: Mapping[str, Samples], is_proxy: bool) -> list[tuple[str, str, Markup]]:
    """Name, kind and drawing of the scores that are known before and after."""
    from difftilt.evaluation.plots import histogram  # matplotlib loads slowly, and only pages need it

    before, after = samples["before"], samples["after"]
    found = []
    for name in (name for name in before if after.get(name) and before[name]):
        kind = "" if name.startswith("part ") else "gold"
        title, kind = ("Reward", "proxy" if is_proxy else "") if name == "reward" else (_title(name), kind)
        found.append((title, kind, Markup(histogram(before[name], after[name]))))
    return found


def _title(name: str) -> str:
    """A gold score's name without the word gold, which the page adds itself."""
    return re.sub(r"^gold[:\s]+(?=.)", "", name)


def _costs(run: Run) -> Iterable[tuple[str, str]]:
    """What the run spent; of an unfinished one, as much as its log says."""
    spent = run.summary or (run.rounds[-1] if run.rounds else {})
    calls = run.summary.get("network_calls") or {}
    counts = {
        "Rounds": spent.get("rounds"),
        "Reward calls": spent.get("reward_calls"),
        "Network forward": calls.get("forward"),
        "Network backward": calls.get("backward"),
    }
    yield from ((name, count(value)) for name, value in counts.items() if value is not None)
    if "seconds" in run.summary:
        yield "Time", duration(run.summary["seconds"])


def _machine(info: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    names = {"seed": "seed", "device": "device", "processes": "processes", "threads": "threads"}
    names["git_revision"] = "git revision"
    yield from ((text, str(info[name])) for name, text in names.items() if info.get(name) is not None)
    yield from ((name, str(version)) for name, version in (info.get("versions") or {}).items())
