"""A target for the KL, in nats, instead of a fixed alpha."""

import math
from collections.abc import Mapping
from typing import Any

from difftilt.objective import Objective
from difftilt.settings import Positive, check_value

GAIN = 0.3  # change of log alpha per relative error
LARGEST_STEP = math.log(2)  # of log alpha, per round
RANGE = 1000.0  # alpha stays within this factor of where it started


class KLController:
    """Moves an objective's alpha between rounds until KL(policy || reference) is what was asked for.

        log alpha += GAIN (predicted / target - 1),    predicted = KL + horizon * (its change per round)

    The KL starts at 0 and follows alpha with a delay. Going by the KL alone would lower alpha all the while
    that the KL is still on its way, and overshoot; so what counts is where the KL is heading. A KL above the
    target that falls is left alone. Each step and the range of alpha are bounded.

    Args:
        objective: Its alpha is where the search starts, and what is moved.
        target_kl: KL to the reference, in nats, above 0.
        horizon: Rounds that the KL takes to follow alpha, at least 0; too small a number overshoots.
    """

    def __init__(self, objective: Objective, target_kl: float, horizon: float = 6.0):
        check_value("target_kl", target_kl, Positive)
        self.objective, self.target_kl, self.horizon = objective, target_kl, horizon
        self._low, self._high = objective.alpha / RANGE, objective.alpha * RANGE
        self._kl: float | None = None  # of the round before

    def update(self, row: Mapping[str, float]) -> None:
        """Moves alpha for the next round, given a row of this one; it is the same in all processes."""
        kl = row.get("kl_nats", math.nan)
        if not math.isfinite(kl):
            raise ValueError(
                f"a target KL needs a finite kl_nats of every round, but {row.get('kl_nats')} came; lower the"
                " learning rate, or let the algorithm report Experience.stats()"
            )
        before, self._kl = self._kl, kl
        if before is None:
            return
        predicted = kl + self.horizon * (kl - before)
        if kl > self.target_kl:
            predicted = max(predicted, self.target_kl)
        step = GAIN * (predicted / self.target_kl - 1)
        alpha = self.objective.alpha * math.exp(min(max(step, -LARGEST_STEP), LARGEST_STEP))
        self.objective.alpha = min(max(alpha, self._low), self._high)

    def state_dict(self) -> dict[str, Any]:
        """What the next rounds depend on, for a checkpoint."""
        return {"target_kl": self.target_kl, "alpha": self.objective.alpha, "kl_nats": self._kl}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.objective.alpha = state["alpha"]
        self._kl = state["kl_nats"]
