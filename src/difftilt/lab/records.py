"""What the file of a lab holds."""

from dataclasses import dataclass
from typing import Any, TypedDict

from difftilt.settings import Count, Natural, Positive, check_settings
from difftilt.shapes import Some


@dataclass(frozen=True)
class Plan:
    """What a lab was begun with, and what it may spend.

    Args:
        budget: Sequences that may be proposed in all, at least 1.
        batch: Sequences per round, at least 1.
        alpha: As for `Asked`.
        distance: As for `Batch`, like the next two.
        seed: Of all that is drawn, at least 0.
    """

    budget: Count
    batch: Count = 96
    alpha: Positive | None = None
    distance: Natural = 2
    per_parent: Count | None = None
    both_strands: bool = False
    seed: Natural = 0

    def __post_init__(self):
        check_settings(self)


class Record(TypedDict):
    """What a lab's model is made of, as in run.json."""

    recipe: str
    settings: dict[str, Any]


@dataclass(frozen=True)
class Proposal:
    """A sequence for the bench.

    Args:
        id: Tells it from all others of the lab, such as P002-A01.
        predicted: What was expected of its measurement; None where nothing was known yet.
        std: How far off that may be.
        to_labelled: How far the nearest measured sequence was, in the unit of the lab's language.
        to_proposed: The same of all that was proposed in earlier rounds.
        rule: What it was drawn for.
        plate: Its number, from 1 on.
        well: Such as A01.
    """

    id: str
    round: int
    text: str
    predicted: float | None
    std: float | None
    to_labelled: int | None
    to_proposed: int | None
    rule: str
    plate: int
    well: str


COLUMNS = tuple(Proposal.__annotations__)


@dataclass(frozen=True)
class Round:
    """Args:
    notes: What had to be done to fill it.
    written: Whether its files are.
    """

    number: int
    rule: str
    at: str
    notes: list[str]
    written: bool


@dataclass(frozen=True)
class Measured:
    """Sequences that were measured: distinct texts, the mean of each, its standard error, and of how many."""

    texts: list[str]
    score: Some
    error: Some
    count: list[int]
