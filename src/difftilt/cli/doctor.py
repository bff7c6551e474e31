"""The command `difftilt doctor`."""

from collections.abc import Iterable

from rich.console import Console

from difftilt.cli.options import parse
from difftilt.cli.runs import build, recipe_of, subject
from difftilt.experiment.doctor import examine
from difftilt.experiment.job import Finding
from difftilt.training.threads import using


def doctor_command(words: list[str]) -> None:
    """Says what would go wrong with a run, with the options of finetune, at the cost of a few samples."""
    recipe, rest = subject("doctor", words)
    title = f"Says what would go wrong with difftilt finetune {recipe}, at the cost of a few samples."
    settings = parse(recipe_of(recipe), rest, f"difftilt doctor {recipe}", title=title)
    job = build(recipe, settings)
    with using(job.training.threads):
        show(examine(job))


def show(findings: Iterable[Finding]) -> None:
    """Prints findings as they come.

    Raises:
        ValueError: If something would go wrong, after all was said.
    """
    console, wrong = Console(), 0
    for finding in findings:
        mark, colour = ("WRONG ", "bold red") if finding.wrong else ("  ok  ", "green")
        console.print(mark, end="", style=colour)
        console.print(finding.text, markup=False, highlight=False, soft_wrap=True)
        wrong += finding.wrong
    if wrong:
        raise ValueError(f"{wrong} of these would make the run go wrong; mend them before you train")
    print("nothing was found that would go wrong")
