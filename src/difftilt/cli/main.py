"""The command line. Every recipe's annotations are its options, with help from the docstrings."""

import dataclasses
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import tyro
from rich.console import Console
from rich.table import Table

from difftilt.cli.data import data_command
from difftilt.cli.options import parse
from difftilt.cli.runs import RECIPES, load, prepare, read_run, show, subject
from difftilt.cli.sample import sample_command
from difftilt.cli.value import resume_value, value_command
from difftilt.domains.digits import pretrain as pretrain_digits
from difftilt.domains.landscape import pretrain as pretrain_landscape
from difftilt.domains.utr import pretrain as pretrain_utr
from difftilt.evaluation.report import write_report
from difftilt.experiment.advise import Facts, advise
from difftilt.experiment.finetune import finetune, plan
from difftilt.experiment.record import VALUE, describe, to_json, write_json
from difftilt.guard import RewardError
from difftilt.settings import UsageError, choose
from difftilt.training.checkpoint import CheckpointError
from difftilt.training.distributed import finish, make_accelerator
from difftilt.training.fit import NonFiniteError
from difftilt.training.signals import Preempted

PRETRAIN: Mapping[str, Callable[..., None]] = {
    "digits": pretrain_digits.pretrain_digits,
    "dna": pretrain_landscape.pretrain_dna,
    "protein": pretrain_landscape.pretrain_protein,
    "utr": pretrain_utr.pretrain_utr,
}
FAILURES = (
    ValueError,
    ImportError,  # an extra that is not installed
    RewardError,
    NonFiniteError,
    CheckpointError,
    OSError,
)  # what a user can mend; all else is a bug


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; errors that a user can mend end in one sentence and a non-zero exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        choose_command(words)(words[1:])
    except Preempted as stop:
        fail(f"{stop}: use difftilt resume", 128 + stop.signal)
    except UsageError as error:
        fail(str(error), 2)
    except FAILURES as error:
        fail(" ".join(str(error).split()) or type(error).__name__, 1)


def choose_command(words: list[str]) -> Callable[[list[str]], None]:
    """What the first word asks for; it takes the rest of the line."""
    if not words or words[0] in ("-h", "--help"):
        return lambda _: print(overview())
    if words[0] == "--version":
        return lambda _: print(version("difftilt"))
    return choose("command", words[0], COMMANDS)


def overview() -> str:
    """What `difftilt --help` prints."""
    lines = ["usage: difftilt COMMAND [OPTIONS]", "", "Reward fine-tuning of diffusion models.", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:10} {(inspect.getdoc(command) or '').splitlines()[0]}")
    return "\n".join(
        [*lines, "", "difftilt COMMAND --help tells a command's options; --version the version."]
    )


def recipes_command(words: list[str]) -> None:
    """Lists the recipes and what each tunes."""
    parse(no_options, words, "difftilt recipes")
    table = Table("recipe", "what it does", box=None)
    for name, recipe in RECIPES.items():
        table.add_row(name, (inspect.getdoc(recipe) or "").splitlines()[0])
    Console().print(table)


def pretrain_command(words: list[str]) -> None:
    """Trains a recipe's starting model from its data."""
    recipe, rest = subject("pretrain", words, PRETRAIN)
    settings = parse(PRETRAIN[recipe], rest, f"difftilt pretrain {recipe}")
    PRETRAIN[recipe](**settings)


def finetune_command(words: list[str]) -> None:
    """Tunes a recipe's model towards a reward, in a run folder."""
    recipe, rest = subject("finetune", words, RECIPES)
    settings = parse(RECIPES[recipe], rest, f"difftilt finetune {recipe}", RunOptions)
    options = RunOptions(**{f.name: settings.pop(f.name) for f in dataclasses.fields(RunOptions)})
    job = RECIPES[recipe](**settings)
    if options.dry_run:
        show({"settings": {k: to_json(v) for k, v in settings.items()}, "plan": plan(job)})
        return
    asked = [word.removeprefix("algorithm:") for word in rest if word.startswith("algorithm:")]
    name = asked[0] if asked else to_json(settings["algorithm"])["name"]
    folder = options.out or Path("runs") / f"{recipe}-{name}"
    accelerator = make_accelerator(job.training.mixed_precision)
    if accelerator.is_main_process:
        prepare(folder, options.overwrite)
        record = describe(recipe, settings, accelerator.num_processes, str(accelerator.device))
        write_json(folder / "run.json", record)
    accelerator.wait_for_everyone()
    conclude(finetune(job, folder, accelerator), folder)
    finish(accelerator)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where a run goes.

    Args:
        out: The run folder; runs/RECIPE-ALGORITHM by default.
        overwrite: Delete what the folder holds of an earlier run.
        dry_run: Print the resolved settings, sizes and expected calls, and stop.
    """

    out: Path | None = None
    overwrite: bool = False
    dry_run: bool = False


def resume_command(words: list[str]) -> None:
    """Goes on with a run from its newest good checkpoint."""
    folder = parse(run_option, words, "difftilt resume")["run"]
    if read_run(folder).get("task") == VALUE:
        resume_value(folder)
        return
    job = load(folder)
    accelerator = make_accelerator(job.training.mixed_precision)
    conclude(finetune(job, folder, accelerator), folder)
    finish(accelerator)


def report_command(words: list[str]) -> None:
    """Writes a run's report.html anew."""
    print(f"report: {write_report(parse(run_option, words, 'difftilt report')['run'])}")


def advise_command(words: list[str]) -> None:
    """Names the algorithm to start with, the reason, the command and what was measured of it."""
    settings = parse(Facts, words, "difftilt advise", AdviseOptions)
    recipe = settings.pop("recipe")
    choose("recipe", recipe, RECIPES)
    print(advise(Facts(**settings), recipe))


@dataclasses.dataclass(frozen=True)
class AdviseOptions:
    """What the command is to tune.

    Args:
        recipe: The recipe that the command names.
    """

    recipe: str = "digits"


COMMANDS: Mapping[str, Callable[[list[str]], None]] = {
    "recipes": recipes_command,
    "pretrain": pretrain_command,
    "finetune": finetune_command,
    "sample": sample_command,
    "value": value_command,
    "resume": resume_command,
    "report": report_command,
    "advise": advise_command,
    "data": data_command,
}


def no_options() -> None:
    """Lists the recipes and what each tunes."""


def run_option(run: tyro.conf.Positional[Path]) -> None:
    """Works on the folder of a run.

    Args:
        run: The run folder, for instance runs/demo.
    """


def conclude(summary: Mapping[str, Any], folder: Path) -> None:
    """Prints what a run achieved: never the reward without its KL, error bars and number of calls."""
    if not summary:
        return
    table = Table("", "before", "after", box=None)
    before = summary["before"]
    for name, label in (("reward", "reward"), ("kl_nats", "KL (nats)"), ("objective", "J")):
        table.add_row(label, *(f"{row[name]:.3f} ± {row[name + '_se']:.3f}" for row in (before, summary)))
    for name in summary["gold"]:
        table.add_row(
            name, *(f"{row['gold'][name]:.3f} ± {row['gold_se'][name]:.3f}" for row in (before, summary))
        )
    console = Console()
    console.print(table)
    calls = summary["network_calls"]
    target = f" (for a KL of {summary['target_kl']:g} nats)" if "target_kl" in summary else ""
    console.print(
        f"alpha {summary['alpha']:.4g}{target}, {summary['reward_calls']} reward calls,"
        f" {calls['forward']} forward and {calls['backward']} backward network calls,"
        f" {summary['seconds']:.0f} s"
    )
    for sentence in summary["warnings"]:
        console.print(f"warning: {sentence}", markup=False)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def fail(message: str, code: int) -> NoReturn:
    """Prints one sentence to the error stream and exits."""
    print(f"difftilt: {message}", file=sys.stderr)
    raise SystemExit(code)
