"""What a claim of the review predicts, stated before anything runs, and the verdict on it.

A prediction says that a number is above 0. Its values, one per seed, have a mean and a 95 % interval by
Student's t; one value alone is computed exactly and has none. It holds if the interval lies above 0, it is
contradicted if that lies below, and it is undecided otherwise. A claim is confirmed if all of its predictions
hold, refuted if none does and one or more are contradicted, and conditional otherwise. A prediction whose
data or model is not on this machine is not run and does not count.
"""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from difftilt.evaluation.estimate import Estimate, mean

# two-sided 95 % quantiles of Student's t, by the number of values less 1
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
HOLDS, CONTRADICTED, UNDECIDED, NOT_RUN = "holds", "contradicted", "undecided", "not run"
CONFIRMED, REFUTED, CONDITIONAL = "confirmed", "refuted", "conditional"


@dataclass(frozen=True)
class Size:
    """How much a claim may spend.

    Args:
        seeds: Of everything that is drawn.
        quick: Whether only the plumbing is tried, on problems so small that their numbers mean nothing.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False

    def of(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full


QUICK = Size((0, 1), quick=True)


@dataclass(frozen=True)
class Prediction:
    """A number that the claim says is above 0.

    Args:
        says: What is predicted, in a sentence without its full stop.
        number: Which number that is, with its unit.
        needs: What must be on this machine beyond the package, if anything.
    """

    says: str
    number: str
    needs: str = ""


@dataclass(frozen=True)
class Table:
    """Numbers behind a verdict; the first cell of a row is its name."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Measured:
    """What a claim's run found, filled in as it goes.

    Args:
        values: By prediction; one number per seed, or one that is exact.
        reward_calls: Samples scored in all.
        notes: What a reader should know, in sentences.
    """

    values: dict[str, list[float]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    reward_calls: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, prediction: str, value: float) -> None:
        self.values.setdefault(prediction, []).append(float(value))


@dataclass(frozen=True)
class Claim:
    """One claim of the review, and how it is tested.

    Args:
        kind: mechanism, experiment, check or question.
        says: The claim, as we read it.
        predictions: What would be seen if it were true, by name.
        run: Measures; what it leaves out was not run.
    """

    name: str
    kind: str
    says: str
    predictions: Mapping[str, Prediction]
    run: Callable[[Size, Measured], None]


def outcome(values: Sequence[float]) -> tuple[float, float, str]:
    """Mean, half of the 95 % interval, and whether the mean is above 0."""
    if not values:
        return 0.0, 0.0, NOT_RUN
    if len(values) == 1:
        middle, half = values[0], 0.0
    elif len(values) > len(STUDENT) + 1:
        raise ValueError(f"at most {len(STUDENT) + 1} seeds have their quantile here, but got {len(values)}")
    else:
        middle, error = mean(values)
        half = STUDENT[len(values) - 2] * error
    if middle - half > 0:
        return middle, half, HOLDS
    return middle, half, CONTRADICTED if middle + half < 0 else UNDECIDED


def verdict_of(outcomes: Sequence[str]) -> str:
    """The verdict on a claim, from what became of its predictions."""
    run = [found for found in outcomes if found != NOT_RUN]
    if run and all(found == HOLDS for found in run):
        return CONFIRMED
    return REFUTED if CONTRADICTED in run and HOLDS not in run else CONDITIONAL


def judge(claim: Claim, size: Size) -> dict[str, Any]:
    """Runs a claim, and says what became of it, as plain numbers and sentences."""
    found, start = Measured(), time.process_time()
    claim.run(size, found)
    if stray := set(found.values) - set(claim.predictions):
        raise ValueError(f"the claim {claim.name} measured {sorted(stray)}, which it does not predict")
    predictions = []
    for name, prediction in claim.predictions.items():
        values = found.values.get(name, [])
        middle, half, became = outcome(values)
        predictions.append(
            {
                "name": name, "says": prediction.says, "number": prediction.number, "outcome": became,
                "mean": middle, "half_width": half, "values": values,
                "needs": prediction.needs if became == NOT_RUN else "",
            }
        )  # fmt: skip
    return {
        "claim": claim.name,
        "kind": claim.kind,
        "says": claim.says,
        "verdict": verdict_of([p["outcome"] for p in predictions]),
        "predictions": predictions,
        "tables": [vars(table) for table in found.tables],
        "notes": found.notes,
        "seeds": list(size.seeds),
        "quick": size.quick,
        "reward_calls": found.reward_calls,
        "cpu_seconds": round(time.process_time() - start, 1),
        "machine": f"{platform.machine()}, one thread, torch {torch.__version__}; shared with other work",
    }


def cell(values: Sequence[float]) -> str:
    """A mean over seeds with its standard error, for a table."""
    return str(mean(values) if len(values) > 1 else Estimate(values[0]))


def told(row: Mapping[str, Any]) -> str:
    """The number of a prediction with its 95 % interval, in words."""
    if row["outcome"] == NOT_RUN:
        return f"needs {row['needs']}"
    if len(row["values"]) == 1:
        return f"{Estimate(row['mean'])}, exact"
    digits = str(Estimate(row["mean"], row["half_width"] or float("nan")))
    return digits.replace("\N{NO-BREAK SPACE}", " ")
