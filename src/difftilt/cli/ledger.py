"""The command `difftilt ledger`."""

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

from difftilt.cli.actions import choose_action
from difftilt.cli.options import parse
from difftilt.data.atomic import atomic_file
from difftilt.data.store import naming, numbers, read_table
from difftilt.rewards.ledger import COLUMNS, Ledger
from difftilt.settings import UsageError

NUMBERS = ("number", "at")  # columns that hold them


def ledger_command(words: list[str]) -> None:
    """Shows what a ledger of paid rewards holds, and carries it to other machines."""
    usage = f"{{{','.join(ACTIONS)}}} LEDGER [OPTIONS]"
    lines = {name: what for name, (_, what) in ACTIONS.items()}
    if chosen := choose_action("ledger", words, ACTIONS, usage, lines):
        chosen[0](words[1:])


def _stats(words: list[str]) -> None:
    ledger = _existing(parse(stats_options, words, "difftilt ledger stats")["ledger"])
    for row in ledger.stats():
        last = datetime.fromtimestamp(row["last"], UTC).strftime("%Y-%m-%d %H:%M")
        counts = f"{row['answers']:,} answers of {row['samples']:,} samples, {row['failures']:,} failures"
        figures = (f"{name} {row[name]:.4g}" for name in ("mean", "least", "greatest"))
        print(f"{row['reward']}, version {row['version']}")
        print(f"  {counts}, the last on {last} UTC\n  {', '.join(figures)}")


def stats_options(ledger: tyro.conf.Positional[Path]) -> None:
    """Counts the answers of each reward and version.

    Args:
        ledger: The file.
    """


def _export(words: list[str]) -> None:
    settings = parse(export_options, words, "difftilt ledger export")
    rows = _existing(settings["ledger"]).rows()
    if settings["out"] is None:
        _write(sys.stdout, rows)
        return
    if settings["out"].exists():
        raise ValueError(f"{settings['out']} exists already; name another file with --out")
    with atomic_file(settings["out"]) as part, part.open("w", newline="", encoding="utf-8") as file:
        _write(file, rows)
    print(f"{settings['out']}: {len(rows)} answers")


def _write(file: Any, rows: Sequence[Sequence[Any]]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)


def export_options(ledger: tyro.conf.Positional[Path], out: Path | None = None) -> None:
    """Writes all answers as CSV.

    Args:
        ledger: The file.
        out: Where to; the terminal by default.
    """


def _import(words: list[str]) -> None:
    settings = parse(import_options, words, "difftilt ledger import")
    path = settings["table"]
    with naming(path):
        columns = dict(zip(COLUMNS, read_table(path, COLUMNS), strict=True))
        found = {name: numbers(columns[name], name) if name in NUMBERS else columns[name] for name in COLUMNS}
    rows = list(zip(*found.values(), strict=True))
    new = Ledger(settings["ledger"]).add(rows)
    print(f"{settings['ledger']}: {new} of {len(rows)} answers were new")


def import_options(ledger: tyro.conf.Positional[Path], table: tyro.conf.Positional[Path]) -> None:
    """Adds the answers of an exported table; what the ledger knows stays as it is.

    Args:
        ledger: The file; made if it is missing.
        table: CSV that difftilt ledger export wrote.
    """


def _existing(path: Path) -> Ledger:
    if not path.is_file():
        raise UsageError(f"there is no ledger {path}; name the file that --ledger of a run named")
    return Ledger(path)


ACTIONS: Mapping[str, tuple[Callable[[list[str]], None], str]] = {
    "stats": (_stats, "counts the answers of each reward and version"),
    "export": (_export, "writes all answers as CSV"),
    "import": (_import, "adds the answers of an exported table"),
}
