"""The page that shows what a run achieved, made from its folder alone."""

import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from difftilt.atomic import atomic_file
from difftilt.evaluation.estimate import MINUS, Change, Estimate
from difftilt.evaluation.plots import curve, histogram
from difftilt.evaluation.run_folder import Run, Samples, as_float, read_pictures, read_run
from difftilt.evaluation.verdict import Outcome, ceiling, findings, headline

CURVES = {
    "reward": "Reward",
    "kl_nats": "KL to the pretrained model, nats",
    "objective": "J = reward less alpha KL",
    "alpha": "alpha, moved to meet the target KL",
}
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def write_report(folder: Path) -> Path:
    """Writes `report.html` into a run folder and returns its path; an unfinished run gets a page too.

    Raises:
        ValueError: If the folder is not that of a run.
    """
    page = render(read_run(Path(folder)))
    path = Path(folder) / "report.html"
    with atomic_file(path) as file:
        file.write_text(page, encoding="utf-8")
    return path


def outcome(run: Run) -> Outcome:
    """The numbers that the verdict judges: the summary's, or those of the training rounds so far."""
    after, before = run.summary, run.before
    finished = "reward" in after
    if not finished and run.rounds:
        before, after = run.before or run.rounds[0], run.rounds[-1]
    rewards = [r for r in run.samples["before"].get("reward", []) if math.isfinite(r)]
    gold = {_title(name): Change(old, new) for name, old, new in _golds(before, after)}
    return Outcome(
        alpha=run.alpha,
        reward=_change(before, after, "reward"),
        kl=_number(after, "kl_nats"),
        objective=_change(before, after, "objective"),
        gold=gold,
        diversity=_change(before, after, "diversity"),
        rounds=[number for row in run.rounds if (number := _objective(row, run.alpha))],
        ceiling=ceiling(rewards, run.alpha) if run.alpha else None,
        target_kl=run.target_kl,
        samples=len(run.samples["after"].get("reward", ())) or None,
        dropped=run.summary.get("dropped", 0),
        ess=[as_float(row["ess"]) for row in run.rounds if row.get("ess") is not None],
        warnings=run.summary.get("warnings", ()),
        finished=finished,
    )


def _number(row: Mapping[str, Any], name: str) -> Estimate | None:
    value, se = row.get(name), row.get(f"{name}_se")
    return None if value is None else Estimate(as_float(value), as_float(se))


def _objective(row: Mapping[str, Any], alpha: float | None) -> Estimate | None:
    """J of a round by the alpha that the run ended with; J's of different alphas cannot be compared."""
    number = _number(row, "objective")
    if number is None or alpha is None or row.get("alpha", alpha) == alpha:
        return number
    return Estimate(as_float(row.get("reward")) - alpha * as_float(row.get("kl_nats")), number.se)


def _change(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> Change | None:
    old, new = _number(before, name), _number(after, name)
    return Change(old, new) if old and new else None


def _golds(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterable[tuple[str, Estimate, Estimate]]:
    for name, value in (after.get("gold") or {}).items():
        if name in (before.get("gold") or {}):
            se = [as_float((row.get("gold_se") or {}).get(name)) for row in (before, after)]
            yield name, Estimate(as_float(before["gold"][name]), se[0]), Estimate(as_float(value), se[1])


def render(run: Run) -> str:
    """The page. Everything that a user or a run wrote is escaped by the template."""
    result = outcome(run)
    said = findings(result)
    laws, exact = _exact(run)
    environment = Environment(
        loader=PackageLoader("difftilt.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("report.html").render(
        run=run,
        title=f"{run.info.get('recipe', 'run')} · {run.folder.resolve().name}",
        created=_date(run.info.get("created")),
        command=run.info.get("command"),
        result=result,
        target=f", of {result.target_kl:g} asked for" if result.target_kl is not None else "",
        first="pretrained" if run.before or result.finished else "first round",
        headline=headline(result),
        achieved=[finding.text for finding in said if finding.kind == "achieved"],
        watch=[finding.text for finding in said if finding.kind == "watch"],
        costs=dict(_costs(run)),
        pictures=read_pictures(run.folder / "samples"),
        curves=_curves(run, result),
        levels=bool(run.before),
        limits=_limits(result),
        histograms=_histograms(run.samples),
        distances={
            name: Estimate(*map(as_float, pair)) for name, pair in run.summary.get("distances", {}).items()
        },
        note=run.summary.get("distances_note"),
        laws=laws,
        exact=exact,
        exact_note=(run.before | run.summary).get("exact_note"),
        settings=dict(_flat(run.settings)),
        machine=dict(_machine(run.info)),
    )


def _exact(run: Run) -> tuple[list[str], dict[str, list[str]]]:
    """The laws whose numbers are known exactly, and each number, one per law."""
    best = (run.before | run.summary).get("optimum")
    laws = {"pretrained": run.before.get("exact"), "tuned": run.summary.get("exact"), "best possible": best}
    known = {title: law for title, law in laws.items() if law}
    names = dict.fromkeys(name for law in known.values() for name in law)
    return list(known), {name: [_plain(law.get(name)) for law in known.values()] for name in names}


def _plain(value: Any) -> str:
    """Four figures, with a power of ten as people write it; empty if there is no number."""
    if value is None:
        return ""
    mean, _, power = Estimate(as_float(value)).mean.partition("e")
    raised = str(int(power.replace(MINUS, "-"))).translate(RAISED) if power else ""
    return f"{mean} \N{MULTIPLICATION SIGN} 10{raised}" if power else mean


def _curves(run: Run, result: Outcome) -> list[tuple[str, Markup]]:
    """The title and the drawing of reward, KL and J over the rounds, and of alpha if it was moved."""
    limits = {"objective": result.ceiling and result.ceiling.value, "kl_nats": result.target_kl}
    found = []
    for name, title in CURVES.items():
        rows = [row for row in run.rounds if row.get(name) is not None]
        if rows and (name != "alpha" or result.target_kl is not None):
            before = _number(run.before, name) if name in ("reward", "objective") else None
            columns = ([as_float(row.get(key)) for row in rows] for key in ("round", name, f"{name}_se"))
            drawing = curve(*columns, before=before and before.value, limit=limits.get(name))
            found.append((title, Markup(drawing)))
    return found


def _limits(result: Outcome) -> list[str]:
    """What the dotted lines in the curves are."""
    best = f"best possible J, {result.ceiling}" if result.ceiling else ""
    target = f"target KL, {result.target_kl:g} nats" if result.target_kl is not None else ""
    return [text for text in (best, target) if text]


def _histograms(samples: Mapping[str, Samples]) -> list[tuple[str, str, Markup]]:
    """Name, kind and drawing of the scores that are known before and after."""
    before, after = samples["before"], samples["after"]
    return [
        (
            "Reward" if name == "reward" else _title(name),
            "proxy" if name == "reward" else "gold",
            Markup(histogram(before[name], after[name])),
        )
        for name in before
        if name in after
    ]


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
    yield from ((name, _count(value)) for name, value in counts.items() if value is not None)
    if "seconds" in run.summary:
        yield "Time", _duration(run.summary["seconds"])


def _machine(info: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    names = {"seed": "seed", "device": "device", "processes": "processes", "threads": "threads"}
    names["git_revision"] = "git revision"
    yield from ((text, str(info[name])) for name, text in names.items() if info.get(name) is not None)
    yield from ((name, str(version)) for name, version in (info.get("versions") or {}).items())


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as dotted names and the values as JSON."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def _count(value: float) -> str:
    return f"{value:,.0f}" if value < 1e7 else f"{value / 1e6:,.1f} million"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _date(text: Any) -> Any:
    """An ISO date as people write it, or the text as it came."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%d %B %Y, %H:%M} UTC"
    except (TypeError, ValueError):
        return text
