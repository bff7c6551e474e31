"""The commands `difftilt report` and `difftilt compare`."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import tyro
from rich.console import Console
from rich.text import Text

from difftilt.cli.options import parse
from difftilt.cli.tables import folded


def report_command(words: list[str]) -> None:
    """Writes a run's report.html anew; of several seeds, that of each."""
    options = parse(report_options, words, "difftilt report")
    from difftilt.cli.runs import bring_back  # slow to load, as what follows, and help needs none of it
    from difftilt.evaluation.report import write_report

    run: Path = options["run"]
    for folder in expanded([run]):
        bring_back(folder)
        print(f"report: {write_report(folder)}")
    if options["index"]:
        show_comparison([run], run)


def report_options(run: tyro.conf.Positional[Path], index: bool = False) -> None:
    """Writes a run's report.html anew, from its folder alone.

    Args:
        run: The run folder, for instance runs/demo; a folder of several runs, or of one over several seeds,
            stands for all of them.
        index: Write one page of all of them into that folder, too, as `difftilt compare` does.
    """


def compare_command(words: list[str]) -> None:
    """Compares runs: a table, a picture and a page."""
    options = parse(compare_options, words, "difftilt compare")
    from difftilt.cli.runs import bring_back

    for run in options["runs"]:
        bring_back(run)
    show_comparison(list(options["runs"]), options["out"])


def compare_options(runs: tyro.conf.Positional[tuple[Path, ...]], out: Path = Path("runs")) -> None:
    """Compares runs: reward against KL, J against reward calls and seconds, over seeds.

    Args:
        runs: Run folders; a folder of several runs, such as runs, or of one over several seeds, stands for
            all of them.
        out: The folder that the page is written into.
    """


def expanded(folders: Sequence[Path]) -> list[Path]:
    """Folders of single runs: one of several seeds, or of several runs, stands for all of them."""
    found: list[Path] = []
    for folder in folders:
        inside = [path for depth in ("*", "*/seed-*") for path in folder.glob(f"{depth}/run.json")]
        alone = not inside or (folder / "run.json").exists()
        found += [folder] if alone else sorted(path.parent for path in inside)
    return found


def show_comparison(folders: Sequence[Path], out: Path) -> None:
    """Prints a table of the runs of each problem, and writes the page into a folder."""
    from difftilt.evaluation.comparison import compare  # loads matplotlib
    from difftilt.evaluation.estimate import Estimate

    found, console = compare(expanded(folders), out), Console()
    for problem, rows in groupby(found["rows"], lambda row: row["problem"]):
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
        table = folded("run", "J", "reward", "KL (nats)", "± over")
        for name in ("calls", "seconds"):
            table.add_column(name, justify="right")
        for row in rows:
            names = ("objective", "reward", "kl_nats")
            numbers = (str(Estimate(row[name], row[f"{name}_se"])) for name in names)
            calls, seconds = f"{row['reward_calls']:,.0f}", f"{row['seconds']:,.0f}"
            table.add_row(Text(row["label"]), *numbers, row["error_over"], calls, seconds)
        for column in table.columns[1:]:
            column.no_wrap = True
        console.print(table)
    for note in found["notes"]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"comparison: {found['page']}", soft_wrap=True)
