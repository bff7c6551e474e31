"""The commands `difftilt report` and `difftilt compare`."""

from collections.abc import Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from difftilt.cli.options import parse
from difftilt.cli.runs import bring_back
from difftilt.evaluation.comparison import compare
from difftilt.evaluation.report import write_report


def report_command(words: list[str]) -> None:
    """Writes a run's report.html anew."""
    run: Path = parse(report_options, words, "difftilt report")["run"]
    bring_back(run)
    print(f"report: {write_report(run)}")


def report_options(run: tyro.conf.Positional[Path]) -> None:
    """Writes a run's report.html anew, from its folder alone.

    Args:
        run: The run folder, for instance runs/demo.
    """


def compare_command(words: list[str]) -> None:
    """Compares runs: a table, a picture and a page."""
    options = parse(compare_options, words, "difftilt compare")
    for run in options["runs"]:
        bring_back(run)
    show_comparison(list(options["runs"]), options["out"])


def compare_options(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("runs")) -> None:
    """Compares runs: reward, KL and J, and J against reward calls and seconds, over seeds.

    Args:
        runs: Run folders; a folder of several seeds stands for all of them.
        out: The folder that the page is written into.
    """


def expanded(folders: Sequence[Path]) -> list[Path]:
    """Folders of single runs: one of several seeds stands for all of them."""
    found: list[Path] = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob("seed-*/run.json"))
        found += inside if inside and not (folder / "run.json").exists() else [folder]
    return found


def show_comparison(folders: Sequence[Path], out: Path) -> None:
    """Prints a table of runs, and writes the page into a folder."""
    found = compare(expanded(folders), out)
    table = Table("run", "seeds", "reward", "KL (nats)", "J", "reward calls", "seconds", "± over", box=None)
    for row in found["rows"]:
        names = ("reward", "kl_nats", "objective")
        numbers = (f"{row[name]:.3f} ± {row[f'{name}_se']:.3f}" for name in names)
        calls, seconds = f"{row['reward_calls']:,.0f}", f"{row['seconds']:,.0f}"
        table.add_row(row["label"], str(len(row["seeds"])), *numbers, calls, seconds, row["error_over"])
    console = Console()
    console.print(table)
    for note in found["notes"]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"comparison: {found['page']}", soft_wrap=True)
