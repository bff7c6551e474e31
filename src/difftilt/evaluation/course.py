"""What monitors get to see of a run, and from where on they speak."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from difftilt.evaluation.estimate import Estimate, average
from difftilt.evaluation.run_folder import as_float

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
        gained: Share of what J can gain, below which a run that is `late` will not get there.
        late: Share of the rounds, from 0 to 1.
        optimism: Standard deviations of the labels by which what a learned reward has risen is likely not
            there.
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
    gained: float = 0.15
    late: float = 0.75
    optimism: float = 0.4
    spread: float = 2.5
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
class Course:
    """What a monitor gets to see, at the end of a round.

    Args:
        before: Numbers of the pretrained model.
        rounds: One row for each of the last rounds: means over its gradient steps.
        first: The same for the first rounds.
        penalised: Share of the samples that earned a penalty by the end of the first round.
        planned: How many rounds there will be; 0 if nobody knows.
        attainable: The largest J that earlier rounds showed to be there; see `answers.attainable`.
    """

    before: Row
    rounds: Sequence[Row]
    first: Sequence[Row]
    penalised: float
    planned: float
    target_kl: float | None
    limits: Limits
    attainable: float = math.nan

    @property
    def best(self) -> float:
        """The largest J that the rounds so far showed to be there; NaN if none did."""
        found = (self.attainable, self.usual("attainable"))
        return max((x for x in found if math.isfinite(x)), default=math.nan)

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


def means(rows: Sequence[Row]) -> dict[str, float]:
    """Of all gradient steps of a round."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, x in row.items():
            if x is not None:
                found.setdefault(name, []).append(as_float(x))
    return {name: sum(column) / len(column) for name, column in found.items()}
