"""The command `difftilt reward`."""

import inspect

from rich.console import Console

from difftilt.cli.actions import choose_action
from difftilt.cli.options import parse
from difftilt.cli.tables import folded
from difftilt.experiment.fit_reward import HEAD, fit_reward, rows


def reward_command(words: list[str]) -> None:
    """Learns a reward from measurements, for --reward learned:DIR."""
    lines = {"fit": (inspect.getdoc(fit_reward) or "").splitlines()[0]}
    if action := choose_action("reward", words, ACTIONS, "fit --data TABLE [OPTIONS]", lines):
        action(words[1:])


def fit_command(words: list[str]) -> None:
    """Learns a reward, and prints how good it is on labels that it has not seen."""
    settings = parse(fit_reward, words, "difftilt reward fit")
    found = fit_reward(**settings)
    table = folded(*HEAD)
    for cells in rows(found):
        table.add_row(*cells)
    Console().print(table)
    print(f"reward: learned:{settings['out']}")


ACTIONS = {"fit": fit_command}
