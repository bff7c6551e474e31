"""The command line. A command's own file is loaded when it is called, so that help comes at once."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from difftilt.cli.door import enter
from difftilt.cli.interruption import watch
from difftilt.settings import UsageError, choose
from difftilt.training.signals import Preempted

CLOSED = 141  # the exit code of a process that SIGPIPE ended

# name: (module, function, what it does)
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "recipes": ("recipes", "recipes_command", "Lists the recipes and what each tunes."),
    "pretrain": ("pretrain", "pretrain_command", "Trains a recipe's starting model from its data."),
    "finetune": ("finetune", "finetune_command", "Tunes a recipe's model towards a reward, in a run folder."),
    "doctor": ("doctor", "doctor_command", "Says what would go wrong with a run, before it is started."),
    "resume": ("finetune", "resume_command", "Goes on with a run from its newest good checkpoint."),
    "sample": (
        "sample",
        "sample_command",
        "Draws samples from a run or a recipe, steered if asked.",
    ),
    "submit": ("submit", "submit_command", "Runs another command as a job of Slurm, preempted or not."),
    "value": (
        "value",
        "value_command",
        "Learns the soft value of a recipe's model, for sample --value.",
    ),
    "reward": ("reward", "reward_command", "Learns a reward from measurements, for --reward learned:DIR."),
    "lab": ("lab", "lab_command", "Proposes what to measure next, plate by plate, and learns from results."),
    "report": ("report", "report_command", "Writes a run's report.html anew."),
    "compare": ("report", "compare_command", "Compares runs: a table, a picture and a page, over seeds."),
    "advise": ("advise", "advise_command", "Names the algorithm to start with, and what was measured of it."),
    "ledger": ("ledger", "ledger_command", "Shows, exports and imports the rewards that were paid for."),
    "data": ("data", "data_command", "Lists the data sets, fetches them, or takes them from files you have."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; whatever a user can mend ends in one sentence and a non-zero exit code.

    Args:
        arguments: Those of the process by default, which then has no other purpose.
    """
    try:
        if arguments is None:
            enter()
        words = list(sys.argv[1:] if arguments is None else arguments)
        try:
            choose_command(words)(words[1:])
        except SystemExit as stop:
            if stop.code:
                raise
        sys.stdout.flush()
    except BaseException as error:
        watch.leave()
        message, code = outcome(error)
    else:
        watch.leave()
        message, code = watch.sentence, watch.code
    if code == CLOSED:  # what is left in the buffers has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if message:
        with suppress(BrokenPipeError):
            print(f"difftilt: {message}", file=sys.stderr, flush=True)
    watch.over(code)
    if code:
        raise SystemExit(code)


def outcome(error: BaseException) -> tuple[str, int]:
    """What to say of an error, and the exit code.

    Raises:
        BaseException: The error itself, if it is a bug or an exit of its own.
    """
    if isinstance(error, Preempted):
        advice = f": {watch.advice}" if watch.advice else ""
        return f"{error}{advice}", 128 + error.signal
    if watch.number:  # whatever third parties made of it
        return watch.sentence, watch.code
    # rich makes of a closed pipe an exit of its own
    if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):
        return "", CLOSED
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, UsageError):
        return str(error), 2
    if isinstance(error, RuntimeError | MemoryError) and _out_of_memory(error):
        return "the memory of this machine is too small for these sizes; lower a batch, a count or a width", 1
    if isinstance(error, Exception) and _mendable(error):
        return " ".join(str(error).split()) or type(error).__name__, 1
    raise error


def _out_of_memory(error: Exception) -> bool:
    from difftilt.experiment.plan import out_of_memory

    return out_of_memory(error)


def _mendable(error: Exception) -> bool:
    """Whether it is an error that a user can mend or has caused, and no bug."""
    from difftilt.answers import BudgetSpent
    from difftilt.training.checkpoint import CheckpointError
    from difftilt.training.fit import NonFiniteError

    mendable = (ValueError, ImportError, NonFiniteError, CheckpointError, BudgetSpent, OSError)
    return isinstance(error, mendable)


def choose_command(words: list[str]) -> Callable[[list[str]], None]:
    """What the first word asks for; it takes the rest of the line."""
    if not words or words[0] in ("-h", "--help"):
        return lambda _: print(overview())
    if words[0] == "--version":
        from importlib.metadata import version  # slow to load, as what follows is

        return lambda _: print(version("difftilt"))
    module, function, _ = choose("command", words[0], COMMANDS)
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working directory has been deleted; change to one that exists") from None
    return getattr(importlib.import_module(f"difftilt.cli.{module}"), function)


def overview() -> str:
    """What `difftilt --help` prints."""
    lines = ["usage: difftilt COMMAND [OPTIONS]", "", "Reward fine-tuning of diffusion models.", ""]
    lines += [f"  {name:10} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "difftilt COMMAND --help tells a command's options; --version the version."]
    )
