"""Signs that a run goes wrong, from numbers that it has anyway: told while it runs, and on its page.

Each monitor reads the rows of `metrics.jsonl` and the numbers of the pretrained model, and speaks once in a
run.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any, get_args

from difftilt.evaluation.estimate import Estimate, average
from difftilt.evaluation.run_folder import as_float
from difftilt.rewards.saved import ABOVE, SPREAD
from difftilt.training.alpha import FAINT
from difftilt.training.settings import MonitorName

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """When monitors speak.

    Args:
        window: Rounds, at least 1, in most of which a number must be beyond its limit.
        variance: Share of the variance to expect, below which samples have collapsed.
        distinct: Share of a batch of sequences that differs, below which they have collapsed.
        beyond: exp of the KL above what the reward asks for, from which samples have collapsed if `halved`.
        halved: Share of the variance to expect, or of the distinct samples of the first round.
        way: Share of the KL to expect, below which a run that is half over has not set out.
        spread: Factor by which the members of a learned reward spread more than on the pretrained samples.
        above: What the modelled reward may exceed the best label by, in units of the reward.
        clipped: Share of ratios outside of the clip range, in any round.
        growth: Factor by which gradients outgrow those of the first rounds.
        failed: Share of the samples that have no valid reward; where these earn a penalty, beyond that share
            in the first round.
        error: Standard errors of the sampled KL's difference from the closed form.
        disagreement: The same difference, as a share of the KL.
        fallen: Standard errors by which J lies below that of the pretrained model.
        loss: The same difference, in nats.
        overrun: Factor of the target KL.
    """

    window: int = 3
    variance: float = 0.25
    distinct: float = 0.05
    beyond: float = 4.0
    halved: float = 0.5
    way: float = 0.1
    spread: float = 1.5
    above: float = 0.0
    clipped: float = 0.6
    growth: float = 10.0
    failed: float = 0.2
    error: float = 5.0
    disagreement: float = 0.1
    fallen: float = 4.0
    loss: float = 0.1
    overrun: float = 2.0


@dataclass(frozen=True)
class Alarm:
    """What a monitor says: one sentence with its evidence and a remedy.

    Args:
        round: In which it spoke, from 1.
    """

    monitor: MonitorName
    round: int
    text: str

    def __str__(self) -> str:
        return f"{self.monitor}, round {self.round}: {self.text}"


@dataclass(frozen=True)
class Course:
    """What a monitor gets to see, at the end of a round.

    Args:
        before: Numbers of the pretrained model.
        rounds: One row for each of the last rounds: means over its gradient steps.
        first: The same for the first rounds.
        penalised: Share of the samples that earned a penalty by the end of the first round.
        planned: How many rounds there will be; 0 if nobody knows.
    """

    before: Row
    rounds: Sequence[Row]
    first: Sequence[Row]
    penalised: float
    planned: float
    target_kl: float | None
    limits: Limits

    def usual(self, name: str) -> float:
        """The median over the window; NaN, which no comparison holds for, while not all of it is known."""
        return self._median(self.rounds, name)

    def early(self, name: str) -> float:
        """The same of the first rounds."""
        return self._median(self.first, name)

    def _median(self, rounds: Sequence[Row], name: str) -> float:
        known = [x for row in rounds if math.isfinite(x := as_float(row.get(name)))]
        return median(known) if len(known) == self.limits.window else math.nan

    def pooled(self, name: str) -> Estimate:
        """The mean over the window, and its standard error."""
        rows = [(as_float(row.get(name)), as_float(row.get(f"{name}_se"))) for row in self.rounds]
        found = average([Estimate(*pair) for pair in rows])
        return found if len(rows) == self.limits.window else Estimate(math.nan)

    @property
    def failed(self) -> float:
        """Share of the samples since the window's first round that had no valid reward."""
        first, last = self.rounds[0], self.rounds[-1]
        asked = as_float(last.get("reward_calls")) - as_float(first.get("reward_calls"))
        kind = "penalised" if "penalised" in last else "dropped"
        return (as_float(last.get(kind)) - as_float(first.get(kind))) / asked if asked > 0 else math.nan

    @property
    def same_problem(self) -> bool:
        """Whether alpha is what the pretrained model was judged by."""
        return math.isclose(as_float(self.rounds[-1].get("alpha")), self.start("alpha"))  # a mean over steps

    def start(self, name: str) -> float:
        """A number of the pretrained model; NaN if it is not known."""
        return as_float(self.before.get(name))

    def expected(self, name: str) -> float:
        """Of `expectations`; NaN if it is not known, or alpha has moved."""
        known = self.before.get("expected") or {}
        return as_float(known.get(name)) if self.same_problem or name == "variance" else math.nan


class Monitors:
    """Looks at every round of a run.

    Args:
        before: Numbers of the pretrained model, `expected` among them.
        planned: How many rounds there will be; 0 if nobody knows.
        target_kl: KL that alpha is moved to reach, if given.

    Attributes:
        alarms: What was said so far.
    """

    def __init__(
        self, before: Row, planned: float = 0, target_kl: float | None = None, limits: Limits | None = None
    ):
        self.alarms: list[Alarm] = []
        self._before, self._planned, self._target = before, planned, target_kl
        self._limits = limits or Limits()
        self._recent: list[Row] = []
        self._first: list[Row] = []
        self._penalised: float | None = None

    def see(self, rows: Sequence[Row]) -> list[Alarm]:
        """What is new to say, given the rows of a round."""
        if not rows:
            return []
        limits, number = self._limits, int(rows[0]["round"]) + 1
        row = _means(rows)
        self._recent = [*self._recent, row][-limits.window :]
        self._first = [*self._first, row][: limits.window]
        if self._penalised is None:
            self._penalised = row.get("penalised", 0) / max(row.get("reward_calls", 1), 1)
        own = self._first, self._penalised, self._planned, self._target, limits
        seen = Course(self._before, self._recent, *own)
        said = {alarm.monitor for alarm in self.alarms}
        new = [
            Alarm(name, number, text)
            for name, watch in WATCHES.items()
            if name not in said and (text := next(watch(seen), ""))
        ]
        self.alarms += new
        return new

    def see_all(self, rows: Iterable[Row]) -> list[Alarm]:
        """What there is to say of a run, given its rows in order."""
        for _, found in groupby(rows, lambda row: row["round"]):
            self.see(list(found))
        return self.alarms


def _means(rows: Sequence[Row]) -> dict[str, float]:
    """Of all gradient steps of a round."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, x in row.items():
            if x is not None:
                found.setdefault(name, []).append(as_float(x))
    return {name: sum(column) / len(column) for name, column in found.items()}


def _collapse(seen: Course) -> Iterator[str]:
    start, asked = seen.expected("variance"), seen.expected("tilted_variance")
    now, known = seen.usual("variance"), math.isfinite(asked)
    distinct, limits = seen.usual("distinct"), seen.limits
    alike = now < limits.variance * (min(asked, start) if known else start)
    fewer = now < limits.halved * asked or distinct < limits.halved * as_float(seen.first[0].get("distinct"))
    beyond = seen.usual("kl_nats") - seen.expected("kl_nats") - 2 * seen.expected("kl_nats_se")
    if alike or distinct < limits.distinct or (fewer and beyond > math.log(limits.beyond)):
        wanted = f", where the reward asks for {asked / start:.2g} times" if known else ""
        rest = f", and {distinct:.0%} of them are distinct" if math.isfinite(distinct) else ""
        cost = f"; their KL is {beyond:.2g} nats above what it asks for" if beyond > 0 else ""
        yield (
            f"the samples vary {now / start:.2g} times as much as the pretrained model's{wanted}{rest}{cost};"
            " raise alpha, lower the learning rate, or sample an earlier checkpoint"
        )


def _exploration(seen: Course) -> Iterator[str]:
    if not seen.rounds[-1]["round"] + 1 >= seen.planned / 2 > 0:
        return
    least = seen.expected("least_kl_nats") - 2 * seen.expected("least_kl_nats_se")
    kl = seen.usual("kl_nats")
    if seen.usual("reward_se") == seen.start("reward_se") == 0 and kl < FAINT:
        yield (
            f"after half of the rounds the reward is {seen.usual('reward'):.3g} for every sample, as for"
            " those of the pretrained model, so nothing tells which are better; begin with a reward that more"
            " samples earn, or with a model that draws such samples"
        )
    if kl < seen.limits.way * least:
        yield (
            f"after half of the rounds the KL is {kl:.2g} nats, where the reward asks for at least"
            f" {least:.2g}, so the model has hardly set out; raise the learning rate or the number of rounds"
        )


def _generalisation(seen: Course) -> Iterator[str]:
    above, best = seen.usual(f"part {ABOVE}"), seen.limits.above
    if above > best:
        yield (
            f"the learned reward is {above:.2g} above the best label on average, where nothing was measured;"
            " measure some of these samples, raise alpha, or learn the reward with --beta"
        )
    spread = as_float((seen.before.get("parts") or {}).get(SPREAD))
    if seen.usual(f"part {SPREAD}") > seen.limits.spread * spread > 0:
        yield (
            f"the members of the learned reward spread {seen.usual(f'part {SPREAD}') / spread:.2g} times as"
            " much as on the pretrained samples, so it extrapolates; measure some of these samples, or raise"
            " alpha"
        )


def _updates(seen: Course) -> Iterator[str]:
    limits, norm = seen.limits, seen.usual("grad_norm")
    if (clipped := as_float(seen.rounds[-1].get("clipped"))) > limits.clipped:
        yield (
            f"{clipped:.0%} of the ratios are outside of the clip range, so most of each step is lost or too"
            " large; lower the learning rate, or take fewer epochs"
        )
    if norm > limits.growth * (early := seen.early("grad_norm")) > 0:
        yield (
            f"gradients are {norm:.3g} long, {norm / early:.2g} times as long as in the first rounds; lower"
            " the learning rate or max-norm, and look for rare, huge rewards"
        )
    if (failed := seen.failed) > limits.failed + seen.penalised:
        yield (
            f"the reward fails for {failed:.0%} of the samples, so the model learns from what is left, or"
            " from the penalty; mend the reward, or keep the model from such samples"
        )


def _kl(seen: Course) -> Iterator[str]:
    limits, kl = seen.limits, seen.usual("kl_nats")
    error, se = seen.pooled("kl_error")
    chosen = seen.failed > limits.failed  # the chains that are left need not be those that were drawn
    if not chosen and abs(error) > max(limits.error * se, limits.disagreement * kl):
        yield (
            f"the KL is {kl:.3g} nats in closed form, but the sampled log-ratios differ from it by"
            f" {error:.2g} ± {se:.1g}; check the chain's kl against its log_prob"
        )
    objective, se = seen.usual("objective"), seen.pooled("objective").se
    before, own = seen.start("objective"), seen.start("objective_se")
    least = max(limits.fallen * math.hypot(se, own), limits.loss * seen.start("alpha"))
    if seen.same_problem and before - objective > least:
        yield (
            f"J is {objective:.3g} ± {se:.1g}, below the pretrained model's {before:.3g}, as a KL of"
            f" {kl:.3g} nats costs more than the reward gained; lower the learning rate, or alpha if the"
            " reward is worth it"
        )
    target = seen.target_kl
    if target is not None and kl > limits.overrun * target > 0:
        yield (
            f"the KL is {kl:.3g} nats, {kl / target:.2g} times its target; lower the learning rate, or start"
            " from a larger alpha"
        )


WATCHES: Mapping[MonitorName, Callable[[Course], Iterator[str]]] = dict(
    zip(get_args(MonitorName), (_collapse, _exploration, _generalisation, _updates, _kl), strict=True)
)
