"""What a run tells: one row per gradient step, in a file, in TensorBoard and on the terminal."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Row = Mapping[str, float]


class MetricLog:
    """`metrics.jsonl`. It holds nothing but what the seed determines, so that a resumed run's is the same.

    Args:
        path: The file; made if it is missing.
        offset: Bytes to keep. What lies behind was written after the checkpoint that is resumed.
    """

    def __init__(self, path: Path, offset: int = 0):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if (size := path.stat().st_size) < offset:
            raise ValueError(
                f"{path} has {size} bytes, but had {offset} when the checkpoint was made; bring the rest back"
            )
        self._file = path.open("r+b")
        self._file.truncate(offset)
        self._file.seek(offset)

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row).encode() + b"\n")

    def flush(self) -> int:
        """Lets readers see every row; returns the length of the file in bytes."""
        self._file.flush()
        return self._file.tell()

    def sync(self) -> None:
        """Brings every row to the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class Tracker:
    """TensorBoard events. A tracker that fails is dropped with one warning; training goes on.

    Args:
        folder: Where the event files go.
        step: The first gradient step; later ones of an earlier life are hidden.
    """

    def __init__(self, folder: Path, step: int = 0):
        self._writer: Any = None
        with self._guarded():
            from torch.utils.tensorboard import SummaryWriter  # takes a while, and only runs need it

            self._writer = SummaryWriter(str(folder), purge_step=step or None)

    def write(self, step: int, row: Row) -> None:
        with self._guarded():
            for name, value in row.items() if self._writer else ():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        with self._guarded():
            if self._writer:
                self._writer.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._writer = None
            warnings.warn(f"TensorBoard failed ({error!r}); training goes on without it", stacklevel=4)


class Journal:
    """The file and TensorBoard together, written by the first process alone.

    Args:
        folder: Of the run.
        offset: Bytes of `metrics.jsonl` to keep.
        step: Gradient steps taken.
        active: Off in all processes but the first, where nothing is written.
    """

    def __init__(self, folder: Path, offset: int, step: int, active: bool):
        self._log = MetricLog(folder / "metrics.jsonl", offset) if active else None
        self._tracker = Tracker(folder / "tensorboard", step) if active else None

    def write(self, step: int, row: Row) -> None:
        if self._log and self._tracker:
            self._log.write({"step": step, **row})
            self._tracker.write(step, row)

    def flush(self) -> int:
        return self._log.flush() if self._log else 0

    def sync(self) -> None:
        if self._log:
            self._log.sync()

    def close(self) -> None:
        if self._log and self._tracker:
            self._log.close()
            self._tracker.close()


@contextmanager
def progress_bar(rounds: int, done: int, show: bool) -> Iterator[Callable[[Row, int], None]]:
    """Yields a function to call with a row and the rounds done: shows reward, KL, J and the time left.

    Args:
        rounds: How many rounds there will be.
        done: How many there are already.
        show: Draw it, if the terminal can.
    """
    columns = (
        TextColumn("round"),
        MofNCompleteColumn(),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not (show and sys.stderr.isatty())) as bar:
        task = bar.add_task("", total=rounds, completed=done)
        yield lambda row, done: bar.update(task, completed=done, description=_describe(row) or None)


def _describe(row: Row) -> str:
    names = {"reward": "reward", "kl_nats": "KL", "objective": "J"}
    return "  ".join(f"{label} {row[name]:.3f}" for name, label in names.items() if name in row)
