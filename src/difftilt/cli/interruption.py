"""Signals to a command: it ends with one sentence and 128 + their number, and says how to go on."""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from difftilt.training.signals import SAME, SIGNALS

PATIENCE = 5.0  # seconds in which a command that was interrupted has to end


class Interrupted(KeyboardInterrupt):
    """A signal has come. It passes whatever lets Ctrl-C pass."""


class Watch:
    """Every signal is less patient than the one before it.

    A training loop that watches by itself ends its round first. Elsewhere, and at the next signal, the
    command is left by an exception. A further one, or a command that is not left in time, ends the process
    where it stands, which files survive as they survive a kill. So does a signal that comes while modules
    are loaded, where third parties turn exceptions into others.

    Attributes:
        number: Of the last signal; 0 until there is one.
    """

    def __init__(self):
        self.number, self._came, self._process = 0, 0.0, 0
        self._folder: Path | None = None
        self._repeatable = False
        self._leaving = False
        self._over: int | None = None
        self._timer: threading.Timer | None = None

    def start(self) -> None:
        """Watches from here on, for the rest of the process."""
        self._process, sys.unraisablehook = os.getpid(), self._swallowed
        for number in SIGNALS:
            signal.signal(number, self._handle)

    @contextmanager
    def resumable(self, folder: Path) -> Iterator[None]:
        """What is interrupted in the block says how to go on with the run of a folder."""
        self._folder = folder
        yield
        self._folder = None

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """What is interrupted in the block goes on with the same command line."""
        self._repeatable = True
        yield
        self._repeatable = False

    @property
    def advice(self) -> str:
        """What to type to go on, if there is something to go on with."""
        if self._repeatable:
            return "the same line"
        made = self._folder is not None and any(
            (self._folder / name).exists() for name in ("run.json", "seeds.json")
        )
        return f"difftilt resume {shlex.quote(str(self._folder))}" if made else ""

    @property
    def sentence(self) -> str:
        """What to say of the signal; empty if there was none."""
        if not self.number:
            return ""
        advice = f"; what is done is kept, go on with {self.advice}" if self.advice else ""
        return f"got {signal.Signals(self.number).name} and stopped before the end{advice}"

    @property
    def code(self) -> int:
        """The exit code for the signal; 0 if there was none."""
        return self.number and 128 + self.number

    def leave(self) -> None:
        """From here on a signal changes nothing: the command has ended, and says how."""
        self._leaving = True
        if self._timer is not None:
            self._timer.cancel()

    def over(self, code: int) -> None:
        """From here on a signal ends the process, with this exit code: all is said."""
        self._over = code

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked child dies as any process does
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self._leaving:
            if self._over is not None:
                os._exit(self._over)
        elif not self.number or time.monotonic() - self._came > SAME:
            again, self.number, self._came = bool(self.number), number, time.monotonic()
            if again or _loading(frame):
                self._end()
            self._timer = threading.Timer(PATIENCE, self._end)
            self._timer.daemon = True
            self._timer.start()
            raise Interrupted

    def _swallowed(self, seen: Any) -> None:
        """What Python cannot raise further, as out of `__del__`."""
        if isinstance(seen.exc_value, Interrupted):
            self._end()
        sys.__unraisablehook__(seen)

    def _end(self) -> NoReturn:
        """Ends the process at once."""
        shown = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar may have hidden the cursor
        with suppress(OSError):
            os.write(2, f"{shown}difftilt: {self.sentence}\n".encode("ascii", "backslashreplace"))
        os._exit(self.code)


def _loading(frame: FrameType | None) -> bool:
    """Whether a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


watch = Watch()  # a process has one set of signal handlers
