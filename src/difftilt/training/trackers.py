"""TensorBoard and Weights & Biases, through accelerate's trackers; none of them can stop a run."""

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from difftilt.data.atomic import atomic_file
from difftilt.data.read import read_text
from difftilt.training.log import Row
from difftilt.training.settings import TrackerName

WANDB_ID = "wandb-id"  # the file that makes all lives of a run one run of Weights & Biases


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raises ImportError, naming the command that installs it, if a tracker's package is missing."""
    for name in names:
        if find_spec(name) is None:
            raise ImportError(
                f"log_to needs the package of each tracker, but got {name!r}, which is not installed; install"
                f" it with pip install 'difftilt[{name}]'"
            )


class Trackers:
    """Tells trackers every row. One that fails is dropped with one warning, and training goes on.

    Args:
        names: Those to start, and to end on `close`.
        folder: Of the run.
        step: Gradient steps taken; what an earlier life told of later ones is hidden.
        settings: Of the run, for those that show them.
        running: Those that the caller has started, and will end.
    """

    def __init__(
        self,
        names: Sequence[TrackerName],
        folder: Path,
        step: int = 0,
        settings: Mapping[str, Any] | None = None,
        running: Sequence[GeneralTracker] = (),
    ):
        self._running = {type(tracker).__name__: tracker for tracker in running}
        self._own = names
        for name in names:
            self._guarded(name, lambda name=name: self._start(name, folder, step, settings or {}))

    def write(self, step: int, row: Row) -> None:
        for name, tracker in list(self._running.items()):
            self._guarded(name, lambda tracker=tracker: tracker.log(dict(row), step))

    def close(self) -> None:
        for name in self._own:
            if name in self._running:
                self._guarded(name, self._running[name].finish)

    def _start(self, name: TrackerName, folder: Path, step: int, settings: Mapping[str, Any]) -> None:
        tracker = _make(name, folder, step, settings)
        tracker.start()
        self._running[name] = tracker

    def _guarded(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            self._running.pop(name, None)
            warnings.warn(f"{name} failed ({error!r}); training goes on without it", stacklevel=4)


def _make(name: TrackerName, folder: Path, step: int, settings: Mapping[str, Any]) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker("tensorboard", folder, purge_step=step + 1)
    file = folder / WANDB_ID
    if not file.exists():
        with atomic_file(file) as new:
            new.write_text(uuid.uuid4().hex)
    return WandBTracker(
        "difftilt", id=read_text(file, 1000), name=folder.name, resume="allow", config=dict(settings)
    )
