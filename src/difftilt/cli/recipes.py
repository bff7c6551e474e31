"""The command `difftilt recipes`."""

import inspect

from rich.console import Console

from difftilt.cli.options import parse
from difftilt.cli.runs import RECIPES, recipe_of
from difftilt.cli.tables import folded
from difftilt.experiment.code import registered


def recipes_command(words: list[str]) -> None:
    """Lists the recipes and what each tunes."""
    parse(no_options, words, "difftilt recipes")
    table = folded("recipe", "what it does")
    for name in [*RECIPES, *registered("recipe")]:
        table.add_row(name, (inspect.getdoc(recipe_of(name)) or "").partition("\n")[0])
    table.add_row("FILE.py:NAME", "A function of your own that returns difftilt.tune(...).")
    Console().print(table)


def no_options() -> None:
    """Lists the recipes and what each tunes."""
