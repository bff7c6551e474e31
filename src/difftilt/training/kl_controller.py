"""A target for the KL, in nats, instead of a fixed alpha."""

import math
from collections.abc import Mapping
from typing import Any

from difftilt.objective import Objective
from difftilt.settings import Positive, check_value

GAIN = 0.3  # change of log alpha per relative error
LARGEST_STEP = math.log(2)  # of log alpha, per round
SLOW = 0.05  # share of a step that is left while the KL is on its way
RANGE = 1000.0  # alpha stays within this factor of where it started


class KLController:
    """Moves an objective's alpha between rounds until KL(policy || reference) is what was asked for.

        log alpha += GAIN (predicted / target - 1),    predicted = KL + horizon * (its change per round)

    The KL starts at 0 and follows alpha with a delay. Going by the KL alone would lower alpha all the while
    that the KL is still on its way, and overshoot. So what counts is where the KL is heading; and below the
    target alpha falls only as far as the KL has stopped growing: hardly, where it grows by more than
    1 / (2 horizon) of itself per round. A KL above the target that falls is left alone. Each step and the
    range of alpha are bounded.

    Args:
        objective: Its alpha is where the search starts, and what is moved; see `starting_alpha`.
        target_kl: KL to the reference, in nats, above 0.
        horizon: Rounds that the KL takes to follow alpha, at least 0; too small a number overshoots.
    """

    def __init__(self, objective: Objective, target_kl: float, horizon: float = 3.0):
        check_value("target_kl", target_kl, Positive)
        self.objective, self.target_kl, self.horizon = objective, target_kl, horizon
        self._first = objective.alpha
        self._kl: float | None = None  # of the round before

    def update(self, row: Mapping[str, float]) -> None:
        """Moves alpha for the next round, given a row of this one; it is the same in all processes."""
        kl = row.get("kl_nats", math.nan)
        if not math.isfinite(kl):
            raise ValueError(
                "a target KL needs a finite kl_nats of every round, but got"
                f" {row.get('kl_nats')}; lower the learning rate, or let the algorithm report"
                " Experience.stats()"
            )
        before, self._kl = self._kl, kl
        if before is None:
            return
        predicted = kl + self.horizon * (kl - before)
        if kl > self.target_kl:
            predicted = max(predicted, self.target_kl)
        step = GAIN * (predicted / self.target_kl - 1)
        if kl < self.target_kl and step < 0:
            step *= self._arrived(kl, kl - before)
        alpha = self.objective.alpha * math.exp(min(max(step, -LARGEST_STEP), LARGEST_STEP))
        self.objective.alpha = min(max(alpha, self._first / RANGE), self._first * RANGE)

    def state_dict(self) -> dict[str, Any]:
        """What the next rounds depend on, for a checkpoint."""
        return {
            "target_kl": self.target_kl,
            "alpha": self.objective.alpha,
            "first_alpha": self._first,
            "kl_nats": self._kl,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.alpha, self._first = state["alpha"], state["first_alpha"]
        self._kl = state["kl_nats"]

    def _arrived(self, kl: float, change: float) -> float:
        """How fast alpha may fall: from SLOW, while the KL grows fast for its size, to 1, where it stands."""
        return 1.0 if min(change, kl) <= 0 else max(SLOW, 1 - 2 * self.horizon * change / kl)
