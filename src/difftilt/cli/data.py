"""The command `difftilt data`."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from difftilt.cli.actions import choose_action
from difftilt.cli.options import parse
from difftilt.cli.tables import folded
from difftilt.data.catalog import DATASETS, adopt, present
from difftilt.data.fetch import fetch
from difftilt.data.store import VARIABLE, root
from difftilt.settings import choose

Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]


def data_command(words: list[str]) -> None:
    """Lists the data sets, fetches them, or takes them from files you have."""
    lines = {
        name + operands: (inspect.getdoc(action) or "").splitlines()[0]
        for name, (action, operands) in ACTIONS.items()
    }
    chosen = choose_action("data", words, ACTIONS, f"{{{','.join(ACTIONS)}}} ...", lines)
    if chosen is None:
        print(f"\nData sets lie in {root()}; the variable {VARIABLE} names another folder.")
        return
    action, _ = chosen
    arguments = parse(action, words[1:], f"difftilt data {words[0]}")
    if "name" in arguments:
        choose("data set", arguments["name"], DATASETS)
    action(**arguments)


def list_datasets() -> None:
    """Lists the data sets, and which are on this machine."""
    table = folded("name", "what", "rows", "terms", "here")
    for name, dataset in DATASETS.items():
        have, need = len(present(name)), len(dataset.files)
        here = "yes" if have == need else f"{have} of {need} files" if have else "no"
        table.add_row(name, dataset.what, dataset.rows, dataset.terms, here)
    console = Console()
    console.print(table)
    console.print(f"They lie in {root()}; the variable {VARIABLE} names another folder.", soft_wrap=True)


def fetch_dataset(name: Name) -> None:
    """Downloads a data set from its publisher and checks it.

    Args:
        name: Of the data set; difftilt data list tells them.
    """
    if len(present(name)) == len(DATASETS[name].files):
        print(f"{name} is in {root() / name} already")
        return
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        remarks = fetch(name, lambda done, total: progress.update(task, completed=done, total=total or None))
    conclude(name, remarks)


def import_dataset(name: Name, path: tyro.conf.Positional[Path]) -> None:
    """Copies a data set from files you have and checks it.

    Args:
        name: Of the data set; difftilt data list tells them.
        path: A folder that holds its files, the archive that they come in, or one file.
    """
    conclude(name, adopt(name, path))


def conclude(name: str, remarks: Sequence[str]) -> None:
    """Says where a data set lies, and what is remarkable about it."""
    print(f"{name}: {', '.join(present(name))} in {root() / name}")
    for remark in remarks:
        print(f"warning: {remark}")


ACTIONS: Mapping[str, tuple[Callable[..., None], str]] = {
    "list": (list_datasets, ""),
    "fetch": (fetch_dataset, " NAME"),
    "import": (import_dataset, " NAME PATH"),
}
