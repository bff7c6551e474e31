"""How far a run is: a bar on a terminal, plain lines in a log."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from difftilt.training.log import Row

QUIET = 10.0  # seconds between two lines, unless a round takes longer

# Called with a row and the number of rounds that are done
Show = Callable[[Row, int], None]


@contextmanager
def progress(rounds: int, done: int, show: bool) -> Iterator[Show]:
    """Yields a function to call with the row of every step, and again with that of a round's end.

    Args:
        rounds: How many rounds there will be.
        done: How many there are already.
        show: Whether to say anything, on the error stream.
    """
    if not show:
        yield lambda row, done: None
    elif sys.stderr.isatty():
        with _bar(rounds, done) as bar:
            yield bar
    else:
        yield _Lines(rounds, done)


def passing(*columns: ProgressColumn) -> Progress:
    """A bar that a terminal shows, and that is gone when all is done."""
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


@contextmanager
def _bar(rounds: int, done: int) -> Iterator[Show]:
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=rounds, completed=done)
        yield lambda row, done: bar.update(task, completed=done, description=_describe(row, ".3f") or None)


class _Lines:
    """One line per round, or every ten seconds if rounds are quicker; always for the first and the last."""

    def __init__(self, rounds: int, done: int):
        self._rounds, self._before, self._done = rounds, done, done  # _done: of the last call
        self._start, self._last = monotonic(), -QUIET

    def __call__(self, row: Row, done: int) -> None:
        now = monotonic()
        ended, self._done = done > self._done, done
        if not ended or (now - self._last < QUIET and done < self._rounds):
            return
        self._last = now
        pace = (now - self._start) / (done - self._before)
        left = _duration(pace * (self._rounds - done))
        parts = [f"round {done}/{self._rounds}", _describe(row, ".4g")]
        parts += [f"{row['reward_calls']:.0f} reward calls"] if "reward_calls" in row else []
        parts.append(f"{pace:.2g} s/round, {left} left")
        print("  ".join(filter(None, parts)), file=sys.stderr, flush=True)


def _describe(row: Row, form: str) -> str:
    """Reward, KL and J of a row, each with its standard error if the row has it."""
    names = {"reward": ("reward", ""), "kl_nats": ("KL", " nats"), "objective": ("J", "")}
    return "  ".join(
        f"{label} {row[name]:{form}}{_error(row, name)}{unit}"
        for name, (label, unit) in names.items()
        if name in row
    )


def _error(row: Row, name: str) -> str:
    error = row.get(f"{name}_se", math.nan)
    return "" if math.isnan(error) else f" ± {error:.1g}"  # a single prompt tells of no error


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
