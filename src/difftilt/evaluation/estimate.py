"""A measured mean with its error bar, and how it is written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from difftilt.objective import standard_error
from difftilt.shapes import PerSample, Scalar

CLEAR = 2.0  # standard errors beyond which a change counts as one
NOTABLE = 0.05  # share of a change below which a part of it is not worth a word
MINUS, GLUE = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"


class Estimate(NamedTuple):
    """A number and its standard error, which is NaN where none was measured; JSON holds them as a pair."""

    value: float
    se: float = math.nan

    def __sub__(self, other: "Estimate") -> "Estimate":
        return Estimate(self.value - other.value, math.hypot(self.se, other.se))

    @property
    def mean(self) -> str:
        """The mean, with the decimals that its standard error supports."""
        digits = _digits(self.se)
        return (f"{self.value:.4g}" if digits is None else f"{self.value:.{digits}f}").replace("-", MINUS)

    @property
    def error(self) -> str:
        """The error bar, empty if there is none to speak of."""
        digits = _digits(self.se)
        return "" if digits is None else f"±{GLUE}{self.se:.{digits}f}"

    def __str__(self) -> str:
        return f"{self.mean}{GLUE}{self.error}".strip()

    @property
    def signed(self) -> str:
        """The number with its sign, as a change is written."""
        return str(self) if self.mean.startswith(MINUS) else f"+{self}"

    @property
    def direction(self) -> int:
        """1 or -1 if the number is above or below zero by two standard errors, else 0."""
        return int(math.copysign(1, self.value)) if abs(self.value) > CLEAR * self.se else 0


def mean(values: PerSample | Sequence[float]) -> Estimate:
    """The mean of independent numbers, with its standard error."""
    x = torch.as_tensor(values, dtype=torch.float64)
    return Estimate(x.mean().item(), standard_error(x).item())


@dataclass(frozen=True)
class Change:
    """A number of the pretrained model and of the tuned one, from independent samples."""

    before: Estimate
    after: Estimate

    @property
    def difference(self) -> Estimate:
        return self.after - self.before

    @property
    def direction(self) -> int:
        return self.difference.direction

    def outgrows(self, other: "Change") -> bool:
        """Whether both numbers agreed before, and this one is above the other by a part of its rise now."""
        gap, agreed = self.after - other.after, not (self.before - other.before).direction
        return agreed and gap.direction > 0 and gap.value > NOTABLE * self.difference.value

    def __str__(self) -> str:
        return f"from {self.before} to {self.after}"


def average(numbers: Sequence[Estimate]) -> Estimate:
    """The mean of independent numbers."""
    se = math.hypot(*(number.se for number in numbers)) / len(numbers)
    return Estimate(sum(number.value for number in numbers) / len(numbers), se)


def jackknife(without: PerSample) -> Scalar:
    """Squared standard error of a statistic from its values that leave one part out each."""
    return without.var(correction=0) * (len(without) - 1)


def log_best_of(kl: float) -> float:
    """log n of the best-of-n sampling that costs this KL, log n - (n - 1) / n."""
    log_n = kl + 1
    for _ in range(100):
        log_n = kl + 1 - math.exp(-log_n)
    return log_n


def _digits(se: float) -> int | None:
    """Decimals that show one or two figures of a standard error."""
    if not se > 0 or not math.isfinite(se):
        return None
    exponent = math.floor(math.log10(se))
    digits = -exponent + (se < 3 * 10.0**exponent)
    return max(digits, 0) if digits <= 6 else None
