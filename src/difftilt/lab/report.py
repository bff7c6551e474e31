"""How a lab stands, round by round: as cells for a terminal, and as a page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from markupsafe import Markup

from difftilt.evaluation.estimate import Estimate, mean
from difftilt.evaluation.words import figures, flat, page, save_page
from difftilt.lab.folder import Lab
from difftilt.lab.records import Proposal, Round
from difftilt.rewards.held_out import INTERVAL, correlation_error
from difftilt.rewards.learned import HALF_WIDTH
from difftilt.shapes import Some

BEST = 10
FAILING = 0.1  # share of a round's wells, above which it is said
FEW = 5  # measurements, of which no correlation is told
HEADS = (
    *("round", "rule", "proposed", "measured", "failed", "pending", "mean", "best", "predicted"),
    *("correlation", "coverage", "apart", "to measured"),
)
SHORT = HEADS[:8]  # what a terminal shows


@dataclass(frozen=True)
class Standing:
    """One round.

    Args:
        measured: The mean of each sequence that was measured, and what was predicted of it with its standard
            deviation; NaN where nothing was.
        failed: Sequences of which all wells failed.
        pending: Sequences of which nothing came back.
    """

    round: Round
    proposals: list[Proposal]
    measured: Some
    predicted: Some
    std: Some
    failed: int
    pending: int

    @property
    def mean(self) -> Estimate | None:
        return mean(self.measured) if len(self.measured) else None

    @property
    def correlation(self) -> Estimate | None:
        """Of predictions with measurements that they had not seen."""
        if len(self.measured) < FEW or not (self.predicted.std() > 0 and self.measured.std() > 0):
            return None
        r = torch.corrcoef(torch.stack([self.predicted, self.measured]))[0, 1].item()
        return Estimate(r, correlation_error(r, len(self.measured)))

    @property
    def coverage(self) -> Estimate | None:
        """The share of measurements in the 90 % intervals."""
        if not len(self.measured) or self.std.isnan().any():
            return None
        inside = ((self.measured - self.predicted).abs() <= HALF_WIDTH * self.std).double().mean().item()
        return Estimate(inside, (INTERVAL * (1 - INTERVAL) / len(self.measured)) ** 0.5)


def standings(lab: Lab) -> list[Standing]:
    """Every round."""
    known, results = lab.measured(), lab.results()
    score = dict(zip(known.texts, known.score.tolist(), strict=True))
    found, proposals = [], lab.proposals()
    for each in lab.rounds():
        own = [p for p in proposals if p.round == each.number]
        back = [p for p in own if p.text in score]
        rows = [(score[p.text], _or_nan(p.predicted), _or_nan(p.std)) for p in back]
        measured, predicted, std = torch.tensor(rows, dtype=torch.float64).view(-1, 3).T
        waiting = sum(p.text not in results for p in own)
        found.append(Standing(each, own, measured, predicted, std, len(own) - len(back) - waiting, waiting))
    return found


def cells(each: Standing) -> list[str]:
    """What `SHORT` names."""
    counts = (len(each.proposals), len(each.measured), each.failed, each.pending)
    best = figures(each.measured.max().item()) if len(each.measured) else ""
    return [str(each.round.number), each.round.rule, *map(str, counts), _shown(each.mean), best]


def more_cells(each: Standing, lab: Lab) -> list[str]:
    """What `HEADS` name beyond `SHORT`."""
    guess = each.predicted[~each.predicted.isnan()]
    x = lab.language.read([p.text for p in each.proposals])
    apart = lab.language.apart(x, x)
    pairs = apart.sum().item() / max(len(x) * (len(x) - 1), 1)
    far = [p.to_labelled for p in each.proposals if p.to_labelled is not None]
    return [
        figures(guess.mean().item()) if len(guess) else "",
        _shown(each.correlation),
        _shown(each.coverage),
        figures(pairs),
        figures(sum(far) / len(far)) if far else "",
    ]


def write_lab_report(lab: Lab) -> Path:
    """Writes `report.html` into the folder of a lab, and returns its path."""
    path = lab.folder / "report.html"
    found, known = standings(lab), lab.measured()
    proposals = {p.text: p for p in lab.proposals()}
    score = dict(zip(known.texts, known.score.tolist(), strict=True))
    start = [x for text, x in score.items() if text not in proposals]
    best = known.score.argsort(descending=True)[:BEST].tolist()
    top = (known.texts[best[0]], known.score[best[0]].item()) if best else None
    headline, told = _told(top, start, {text: x for text, x in score.items() if text in proposals})
    rows = [
        _best(
            known.texts[i], Estimate(score[known.texts[i]], known.error[i].item()), known.count[i], proposals
        )
        for i in best
    ]
    text = page(
        "lab.html",
        title=f"{lab.record['recipe']} · {lab.folder.resolve().name}",
        headline=headline,
        told=told,
        watch=_watch(found),
        spent=spent(lab, found),
        best=rows,
        heads=HEADS,
        rounds=[[*cells(each), *more_cells(each, lab)] for each in found],
        charts=_charts(found, max(start, default=None)),
        notes=[f"Round {each.round.number}: {note}" for each in found for note in each.round.notes],
        settings=dict(flat({**asdict(lab.plan), "recipe": lab.record["recipe"], **lab.record["settings"]})),
    )
    save_page(path, text)
    return path


def spent(lab: Lab, found: list[Standing]) -> list[tuple[str, str]]:
    """What was spent of the budget, by name."""
    proposed = sum(len(each.proposals) for each in found)
    counts = {
        "Proposed": f"{proposed:,} of {lab.plan.budget:,}",
        "Measured": f"{sum(len(each.measured) for each in found):,}",
        "Failed": f"{sum(each.failed for each in found):,}",
        "Pending": f"{sum(each.pending for each in found):,}",
        "Rounds": str(len(found)),
    }
    return list(counts.items())


def _best(
    text: str, estimate: Estimate, count: int, proposed: Mapping[str, Proposal]
) -> tuple[str, str, str, str, str]:
    """A row of the table of the best: sequence, measured, of how many, predicted and where from."""
    made = proposed.get(text)
    predicted = "" if made is None or made.predicted is None else figures(made.predicted)
    return (
        text,
        str(estimate),
        str(count),
        predicted,
        "the data at first" if made is None else made.id,
    )


def _told(
    top: tuple[str, float] | None, start: Sequence[float], proposed: Mapping[str, float]
) -> tuple[str, str]:
    """The headline, and what it means.

    Args:
        top: The sequence that was measured highest, and its mean.
        start: What was measured of others than proposals.
        proposed: What was measured of proposals, by sequence.
    """
    if top is None:
        return "Nothing was measured yet", "Take the plate's table to the bench, and ingest what comes back."
    headline = f"The best measured so far is {top[0]}, with {figures(top[1])}"
    if top[0] not in proposed:
        return headline, "It is of the data that the lab was given: no proposal was measured higher so far."
    if not start:
        return headline, "Nothing else than proposals was measured."
    above = sum(x > max(start) for x in proposed.values())
    return headline, f"The best of the data at first had {figures(max(start))}; {above} proposals had more."


def _watch(found: Sequence[Standing]) -> list[str]:
    """What is of concern, in sentences."""
    said = []
    for each in found:
        of = f"of the {len(each.proposals)} sequences of round {each.round.number}"
        said += [f"{each.pending} {of} are pending."] if each.pending else []
        said += [f"{each.failed} {of} failed."] if each.failed > FAILING * len(each.proposals) else []
    last = next((each for each in reversed(found) if len(each.measured) >= FEW), None)
    if last is not None and last.coverage is not None and (last.coverage - Estimate(INTERVAL)).direction < 0:
        said.append(
            f"Of round {last.round.number} only {last.coverage.value:.0%} of the measurements lie in their"
            " 90 % intervals: the model is surer than it should be of what it proposes."
        )
    if last is not None and last.correlation is not None and last.correlation.direction <= 0:
        said.append(
            f"Within round {last.round.number} predictions do not order the measurements (correlation"
            f" {last.correlation}); more exploration may help: ladder, thompson or ucb."
        )
    return said


def _charts(found: Sequence[Standing], start: float | None) -> list[tuple[str, Markup]]:
    """The title and the drawing of every figure that there are numbers for."""
    from difftilt.evaluation.plots import curve, parity  # matplotlib loads slowly, and only pages need it

    done = [each for each in found if len(each.measured)]
    if not done:
        return []
    numbers, best = [each.round.number for each in done], [each.measured.max().item() for each in done]
    means = [each.mean or Estimate(math.nan) for each in done]
    drawn = [
        ("Mean of a round, ± 2 standard errors", curve(numbers, *zip(*means, strict=True), before=start)),
        ("Best of a round", curve(numbers, best, [math.nan] * len(best), before=start)),
    ]
    rows = torch.cat(
        [torch.stack([each.predicted, each.measured, HALF_WIDTH * each.std], 1) for each in done]
    )
    rows = rows[rows.isfinite().all(1)]
    if len(rows):
        drawn.append(("Measured over predicted, with 90 % intervals", parity(*rows.T.tolist())))
    return [(title, Markup(drawing)) for title, drawing in drawn]


def _shown(number: Estimate | None) -> str:
    return "" if number is None else str(number)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
