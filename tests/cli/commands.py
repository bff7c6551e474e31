"""Commands in children of this process, which has loaded everything: a hundred of them in a minute."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import matplotlib.backends.backend_svg  # noqa: F401  (so that no child loads it anew)
import torch
from sklearn.datasets import load_digits

from difftilt.cli import data, finetune, ledger, main, pretrain, report, sample, value  # noqa: F401
from difftilt.domains.digits import recipe  # noqa: F401

load_digits()


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> list[str]:
        """The lines of its error output that are the command's own."""
        return [line for line in self.err.splitlines() if line.startswith("difftilt: ")]


class Command:
    """A command that runs in a child.

    Args:
        words: Behind `difftilt`.
        folder: For what it prints.
        before: Is called in the child, before the command.
    """

    def __init__(self, words: Sequence[str], folder: Path, before: Callable[[], object] | None = None):
        self._out, self._err = (folder / name for name in ("stdout", "stderr"))
        for path in (self._out, self._err):  # here, lest a child that dies at once leave another's words
            path.write_text("")
        self._encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        sys.stdout.flush()
        self.process = os.fork()
        if not self.process:
            self._child(words, before)

    def send(self, number: int) -> None:
        os.kill(self.process, number)

    def wait(self, seconds: float = 120) -> Ended:
        """Its end; it is killed, and the test fails, if it does not come in time."""
        end = time.monotonic() + seconds
        while not (found := os.waitpid(self.process, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
                raise TimeoutError(f"no end after {seconds} s; it had said {self._err.read_text()}")
            time.sleep(0.005)
        out, err = (path.read_text(encoding=self._encoding) for path in (self._out, self._err))
        return Ended(os.waitstatus_to_exitcode(found[1]), out, err)

    def _child(self, words: Sequence[str], before: Callable[[], object] | None) -> NoReturn:
        code = 97
        try:
            for number, path in ((1, self._out), (2, self._err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.stdout = os.fdopen(1, "w", encoding=self._encoding)
            sys.stderr = os.fdopen(2, "w", encoding=self._encoding, errors="backslashreplace", buffering=1)
            sys.argv = ["difftilt", *words]
            torch.set_num_threads(1)
            if before is not None:
                before()
            main.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 98
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


@contextmanager
def environment(**changes: str) -> Iterator[None]:
    """Variables that children see while the block runs."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
