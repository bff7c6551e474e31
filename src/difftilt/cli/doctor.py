"""The command `difftilt doctor`."""

import torch
from rich.console import Console

from difftilt.cli.options import parse
from difftilt.cli.runs import build, recipe_of, subject
from difftilt.experiment.doctor import examine


def doctor_command(words: list[str]) -> None:
    """Says what would go wrong with a run, with the options of finetune, at the cost of a few samples.

    Raises:
        ValueError: If something would, after all was said.
    """
    recipe, rest = subject("doctor", words)
    title = f"Says what would go wrong with difftilt finetune {recipe}, at the cost of a few samples."
    settings = parse(recipe_of(recipe), rest, f"difftilt doctor {recipe}", title=title)
    job, console, wrong = build(recipe, settings), Console(), 0
    torch.set_num_threads(job.training.threads)
    for finding in examine(job):
        console.print(
            "WRONG " if finding.wrong else "  ok  ", end="", style="bold red" if finding.wrong else "green"
        )
        console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
        wrong += finding.wrong
    if wrong:
        raise ValueError(f"{wrong} of these would make the run go wrong; mend them before you train")
    print("nothing was found that would go wrong")
