"""The command line. A command's own file is loaded when it is called, so that help comes at once."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import NoReturn

from difftilt.settings import UsageError, choose

# name: (module, function, what it does)
COMMANDS: Mapping[str, tuple[str, str, str]] = {
    "recipes": ("recipes", "recipes_command", "Lists the recipes and what each tunes."),
    "pretrain": ("pretrain", "pretrain_command", "Trains a recipe's starting model from its data."),
    "finetune": ("finetune", "finetune_command", "Tunes a recipe's model towards a reward, in a run folder."),
    "resume": ("finetune", "resume_command", "Goes on with a run from its newest good checkpoint."),
    "sample": (
        "sample",
        "sample_command",
        "Draws samples from a run or a recipe, steered if asked.",
    ),
    "value": (
        "value",
        "value_command",
        "Learns the soft value of a recipe's model, for sample --value.",
    ),
    "report": ("report", "report_command", "Writes a run's report.html anew."),
    "compare": ("report", "compare_command", "Compares runs: a table, a picture and a page, over seeds."),
    "advise": ("advise", "advise_command", "Names the algorithm to start with, and what was measured of it."),
    "ledger": ("ledger", "ledger_command", "Shows, exports and imports the rewards that were paid for."),
    "data": ("data", "data_command", "Lists the data sets, fetches them, or takes them from files you have."),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command; errors that a user can mend end in one sentence and a non-zero exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        choose_command(words)(words[1:])
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except BrokenPipeError:  # who read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except UsageError as error:
        fail(str(error), 2)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        fail(" ".join(str(error).split()) or type(error).__name__, code)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a user can mend or has caused; None for a bug."""
    from difftilt.training.checkpoint import CheckpointError
    from difftilt.training.fit import NonFiniteError
    from difftilt.training.signals import Preempted

    if isinstance(error, Preempted):
        return 128 + error.signal
    mendable = (ValueError, ImportError, NonFiniteError, CheckpointError, OSError)
    return 1 if isinstance(error, mendable) else None


def choose_command(words: list[str]) -> Callable[[list[str]], None]:
    """What the first word asks for; it takes the rest of the line."""
    if not words or words[0] in ("-h", "--help"):
        return lambda _: print(overview())
    if words[0] == "--version":
        return lambda _: print(version("difftilt"))
    module, function, _ = choose("command", words[0], COMMANDS)
    return getattr(importlib.import_module(f"difftilt.cli.{module}"), function)


def overview() -> str:
    """What `difftilt --help` prints."""
    lines = ["usage: difftilt COMMAND [OPTIONS]", "", "Reward fine-tuning of diffusion models.", ""]
    lines += [f"  {name:10} {what}" for name, (_, _, what) in COMMANDS.items()]
    return "\n".join(
        [*lines, "", "difftilt COMMAND --help tells a command's options; --version the version."]
    )


def fail(message: str, code: int) -> NoReturn:
    """Prints one sentence to the error stream and exits."""
    print(f"difftilt: {message}", file=sys.stderr)
    raise SystemExit(code)
