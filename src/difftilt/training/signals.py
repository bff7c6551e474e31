"""A signal asks a run to stop at the end of the present round; a second one is obeyed at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME = 1.0  # seconds: a launcher passes on the Ctrl-C that its processes have already got


class Preempted(Exception):  # noqa: N818  (not an error: the run is safe on disk and can be resumed)
    """The run was asked to stop, and has saved a checkpoint.

    Args:
        unit: What is counted, where it is no rounds.

    Attributes:
        signal: Which signal asked; the exit code is 128 + this number.
        rounds: How many rounds are done.
    """

    def __init__(self, number: int, rounds: int, unit: str = "round"):
        self.signal, self.rounds = signal.Signals(number), rounds
        super().__init__(
            f"got {self.signal.name}; the run stopped after {unit} {rounds} and can be resumed from there"
        )


class Stop:
    """Whether a signal has come. `number` is 0 until then.

    The first signal puts the previous handlers back, so that a second one ends the process.
    """

    def __init__(self):
        self.number, self._came = 0, 0.0
        self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self._came = number, time.monotonic()
        elif time.monotonic() - self._came > SAME:
            self.restore()
            signal.raise_signal(number)


class Never:
    """Stands in for `Stop` outside the main thread, where Python delivers no signals."""

    number = 0


@contextmanager
def watch_signals() -> Iterator[Stop | Never]:
    """Catches SIGINT, SIGTERM and SIGUSR1 while the block runs, and puts the handlers back."""
    if threading.current_thread() is not threading.main_thread():
        yield Never()
        return
    stop = Stop()
    try:
        yield stop
    finally:
        stop.restore()
