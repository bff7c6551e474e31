"""Signs that a run goes wrong, from numbers that it has anyway: told while it runs, and on its page.

Each monitor reads the rows of `metrics.jsonl` and the numbers of the pretrained model, and speaks once in a
run.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import get_args

from difftilt.evaluation.course import Course, Limits, Row, means
from difftilt.evaluation.run_folder import as_float
from difftilt.rewards.saved import ABOVE, OPTIMISM, SPREAD
from difftilt.training.settings import MonitorName


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
        self._attainable = math.nan

    def see(self, rows: Sequence[Row]) -> list[Alarm]:
        """What is new to say, given the rows of a round."""
        if not rows:
            return []
        limits, number = self._limits, int(rows[0]["round"]) + 1
        row = means(rows)
        self._recent = [*self._recent, row][-limits.window :]
        self._first = [*self._first, row][: limits.window]
        if self._penalised is None:
            self._penalised = row.get("penalised", 0) / max(row.get("reward_calls", 1), 1)
        own = self._first, self._penalised, self._planned, self._target, limits
        seen = Course(self._before, self._recent, *own, self._attainable)
        self._attainable = seen.best
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
    limits, done = seen.limits, seen.rounds[-1]["round"] + 1
    if not done >= seen.planned / 2 > 0:
        return
    least = seen.expected("least_kl_nats") - 2 * seen.expected("least_kl_nats_se")
    kl, reward = seen.usual("kl_nats"), seen.usual("reward")
    if seen.usual("reward_se") == seen.start("reward_se") == 0 and reward == seen.start("reward"):
        yield (
            f"after half of the rounds the reward is {reward:.3g} for every sample, as for those of the"
            " pretrained model, so nothing tells which are better; begin with a reward that more samples"
            " earn, or with a model that draws such samples"
        )
    if kl < limits.way * least:
        yield (
            f"after half of the rounds the KL is {kl:.2g} nats, where the reward asks for at least"
            f" {least:.2g}, so the model has hardly set out; raise the learning rate or the number of rounds"
        )
    gained, most = seen.usual("objective") - seen.start("objective"), seen.best - seen.start("objective")
    error = 2 * math.hypot(seen.pooled("objective").se, seen.start("objective_se"))
    if (
        seen.same_problem
        and done >= limits.late * seen.planned
        and -error < gained < limits.gained * most - error
    ):
        spent = seen.start("alpha") * kl > gained
        yield (
            f"after {done:.0f} of {seen.planned:.0f} rounds J has risen by {gained:.2g} of the {most:.2g}"
            f" that its own samples, weighed by the reward, show to be there, at a KL of {kl:.2g} nats; "
            + ("lower the learning rate" if spent else "raise the learning rate or the number of rounds")
            + ", or take larger batches"
        )


def _generalisation(seen: Course) -> Iterator[str]:
    limits, parts = seen.limits, seen.before.get("parts") or {}
    if (above := seen.usual(f"part {ABOVE}")) > limits.above:
        yield (
            f"the learned reward is {above:.2g} above the best label on average, where nothing was measured;"
            " measure some of these samples, raise alpha, or learn the reward with --beta"
        )
    if (gone := seen.usual(f"part {OPTIMISM}") - as_float(parts.get(OPTIMISM))) > limits.optimism:
        yield (
            f"of what the learned reward has risen by, {gone:.2g} standard deviations of its labels are"
            " likely not there, as predictions of labels that were held out were too bold; measure more"
            " labels, some of these samples among them, or raise alpha"
        )
    if (spread := seen.usual(f"part {SPREAD}")) > limits.spread * (usual := as_float(parts.get(SPREAD))) > 0:
        yield (
            f"the members of the learned reward spread {spread / usual:.2g} times as much as on the"
            " pretrained samples, so it extrapolates; measure some of these samples, or raise alpha"
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
