"""Where a command meets its process: signals, streams that are closed or lack letters, and warnings."""

import codecs
import logging
import os
import sys
import sysconfig
import warnings
from pathlib import Path
from typing import Any

from difftilt.cli.interruption import watch

WIDTHS = (40, 300)  # columns of a terminal that tables and help can be fitted to
# letters that an encoding may lack, in those that all have
PLAIN = str.maketrans(
    {"\u00b1": "+-", "\u00d7": "x", "\u2013": "-", "\u2014": "-", "\u2026": "...", "\u2019": "'"}
    | dict.fromkeys("\u2501\u2578\u257a", "-")
)
PACKAGE = str(Path(__file__).parents[1])
OTHERS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def enter() -> None:
    """Prepares a process that has no other purpose than a command."""
    watch.start()
    _open_streams()
    _fit_width()
    warnings.showwarning, logging.lastResort = _show_warning, _Own(logging.WARNING)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def _open_streams() -> None:
    """Makes sure that the three streams can be written to, whatever text comes."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # closed, as by >&-: no other file may get its number
            os.open(os.devnull, os.O_RDWR)
    codecs.register_error("plain", _plainly)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115
        stream = getattr(sys, name)
        if not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="plain")


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Letters that an encoding lacks, in those that it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(PLAIN)
    return text.encode("ascii", "replace").decode(), error.end


def _fit_width() -> None:
    """Gives tables and help a width that they can be fitted to, whatever the environment says."""
    asked = os.environ.get("COLUMNS")
    if asked is None:
        return
    width = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 80
    os.environ["COLUMNS"] = str(min(max(width, WIDTHS[0]), WIDTHS[1]))


def _show_warning(message: Any, category: type[Warning], filename: str, line: int, *rest: Any) -> None:
    """Prints our warnings as one line and the user's as Python does; those of third parties are left out."""
    if category.__module__.startswith("difftilt") or filename.startswith(PACKAGE):
        print(f"difftilt: warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    elif not filename.startswith((*OTHERS, "<")):
        print(warnings.formatwarning(message, category, filename, line), end="", file=sys.stderr, flush=True)


class _Own(logging.StreamHandler):
    """What nobody else logs is printed if the user's own code says it."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.pathname.startswith(OTHERS)
