"""The command `difftilt advise`."""

from dataclasses import dataclass

from difftilt.cli.options import parse
from difftilt.cli.runs import RECIPES
from difftilt.experiment.advise import Facts, advise
from difftilt.settings import choose


@dataclass(frozen=True)
class AdviseOptions:
    """What the command is to tune.

    Args:
        recipe: The recipe that the command names.
    """

    recipe: str = "digits"


def advise_command(words: list[str]) -> None:
    """Names the algorithm to start with, the reason, the command and what was measured of it."""
    settings = parse(Facts, words, "difftilt advise", AdviseOptions)
    recipe = settings.pop("recipe")
    choose("recipe", recipe, RECIPES)
    print(advise(Facts(**settings), recipe))
