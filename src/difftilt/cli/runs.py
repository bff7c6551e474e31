"""What commands share: recipes by name, and the folders that runs leave behind."""

import dataclasses
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from difftilt.cli.options import hints_of
from difftilt.data.lock import BusyError, locked
from difftilt.data.owned import RUN, check_free, check_inside, check_no_strangers, check_run, contents, sweep
from difftilt.data.replaced import OLD, put_back, set_aside, settle, waits
from difftilt.experiment import code
from difftilt.experiment.identity import EVERYTHING
from difftilt.experiment.job import Job, Maker
from difftilt.experiment.record import VALUE, read_run, restore, trust
from difftilt.rewards.scoring import Scoring
from difftilt.settings import Threads, UsageError, check_value
from difftilt.training.settings import Training

RECIPES: Mapping[str, str] = {
    "digits": "difftilt.domains.digits.recipe:digits",
    "dna": "difftilt.domains.landscape.recipe:dna",
    "molecules": "difftilt.domains.molecules.recipe:molecules",
    "pipeline": "difftilt.domains.diffusers.recipe:pipeline",
    "protein": "difftilt.domains.landscape.recipe:protein",
    "sequences": "difftilt.domains.sequences.recipe:sequences",
    "utr": "difftilt.domains.utr.recipe:utr",
}


@dataclasses.dataclass(frozen=True)
class ScoreOptions(Scoring):
    """How to ask the reward.

    Args:
        threads: CPU threads of torch, 1 to 256; by default the fewest that the model is quickest with.
    """

    threads: Threads | None = None


@dataclasses.dataclass(frozen=True)
class CodeOptions:
    """Code to execute, by name, where a run was made of code that has changed or came from elsewhere.

    Args:
        recipe: In the place of the run's recipe: FILE.py:NAME.
        reward: In the place of its reward: FILE.py:NAME, command:COMMAND, http://HOST/PATH,
            learned:DIR or clip:FOLDER_OR_ID.
        algorithm: In the place of its algorithm: FILE.py:NAME.
    """

    recipe: str | None = None
    reward: str | None = None
    algorithm: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """What was named, by option."""
        return {name: text for name, text in vars(self).items() if text is not None}


def subject(command: str, words: list[str]) -> tuple[str, list[str]]:
    """The recipe that a command is about, and the rest of the line."""
    names = [*RECIPES, *code.registered("recipe")]
    if words and words[0] in ("-h", "--help"):
        print(f"usage: difftilt {command} {{{','.join(names)},FILE.py:NAME}} [OPTIONS]")
        print(f"\ndifftilt {command} RECIPE --help tells the options of a recipe.")
        raise SystemExit(0)
    if not words:
        raise UsageError(f"difftilt {command} needs a recipe: {', '.join(names)}, or FILE.py:NAME")
    recipe_of(words[0])
    return words[0], words[1:]


def recipe_of(name: str) -> Callable[..., Job]:
    """The recipe of that name."""
    recipe = code.find("recipe", name, RECIPES)
    hints_of(recipe)
    return recipe


def build(name: str, settings: Mapping[str, Any]) -> Job:
    """The job of a recipe, which knows how it can be made again."""
    job = recipe_of(name)(**settings)
    if not isinstance(job, Job):
        raise UsageError(
            f"{name} returned a {type(job).__name__}; a recipe returns a Job, as difftilt.tune makes"
        )
    return dataclasses.replace(job, maker=Maker(name, settings))


def score_options(name: str) -> type[ScoreOptions]:
    """How to ask the reward, with the defaults of a recipe's training."""
    training = inspect.signature(recipe_of(name)).parameters.get("training")
    if training is None or not isinstance(training.default, Training):
        return ScoreOptions
    fields = [
        (f.name, f.type, dataclasses.field(default=getattr(training.default, f.name)))
        for f in dataclasses.fields(ScoreOptions)
    ]
    return dataclasses.make_dataclass("OwnScoreOptions", fields, bases=(ScoreOptions,), frozen=True)


def for_sampling(name: str, score: ScoreOptions) -> dict[str, Any]:
    """The settings of a recipe that say how the reward is asked, where it has any."""
    known = inspect.signature(recipe_of(name)).parameters
    return {"training": Training(**dataclasses.asdict(score))} if "training" in known else {}


def load(folder: Path, options: CodeOptions) -> Job:
    """The job of a run folder, from its run.json."""
    record = read_run(folder)
    if record.get("task") == VALUE:
        raise ValueError(f"{folder} holds a soft value and no model: sample a recipe with --value {folder}")
    made_of = trust(folder, record, options.named)
    job = build(made_of["recipe"], settings_of(made_of["recipe"], made_of["settings"]))
    threads = job.training.threads or record.get("threads")
    return job.taking(threads) if threads else job


def settings_of(recipe: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe from a run.json whose code may be executed."""
    function = recipe_of(recipe)
    algorithm = settings.get("algorithm")
    name = str(algorithm.get("name", "")) if isinstance(algorithm, dict) else ""
    if code.outside(name) or name in code.registered("algorithm"):
        code.find("algorithm", name, {})
    restored, hints = restore(function, settings), hints_of(function)
    for key, value in restored.items():
        check_value(key, value, hints[key])
    return restored


def taken(group: Any, settings: dict[str, Any]) -> Any:
    """An option group, whose options leave the settings."""
    return group(**{field.name: settings.pop(field.name) for field in dataclasses.fields(group)})


def check_writable(folder: Path) -> None:
    """Raises ValueError if a folder, or the nearest one around it that exists, cannot be written to."""
    nearest = next((place for place in (folder, *folder.parents) if os.path.lexists(place)), Path())
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is no folder, so nothing fits into {folder}; name another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ValueError(f"{nearest} cannot be written to; name another folder with --out")


def accepted(options: CodeOptions, *, everything: bool) -> list[str]:
    """What may have changed since a checkpoint, by the beginnings of names: what was named anew, or all."""
    may = {"recipe": ["recipe", "code of "], "reward": ["reward", "code of "], "algorithm": ["algorithm."]}
    may["algorithm"].append("code of ")
    return [EVERYTHING] if everything else [name for option in options.named for name in may[option]]


@contextmanager
def taking(folders: Sequence[Path], overwrite: bool, first: bool) -> Iterator[None]:
    """Keeps folders for new runs while the block runs. Earlier runs there come back if no new one gets far.

    An earlier run is deleted once the new one in its folder has a checkpoint, see `data.replaced`.

    Args:
        overwrite: Whether earlier runs may be deleted.
        first: Whether this is the first process; the others do nothing.

    Raises:
        ValueError: Before anything is changed, if a folder holds a run that may not be deleted, or something
            else.
    """
    with ExitStack() as stack:
        for folder in folders if first else ():
            _check_room(folder, overwrite)
        replaced = [folder for folder in folders if first and _taken_up(folder, stack, overwrite)]
        for folder in replaced:
            set_aside(folder)
        try:
            yield
        except Exception:  # after a signal the new run can be resumed
            if all(waits(folder) for folder in replaced):
                for folder in replaced:
                    put_back(folder)
                    print(BACK.format(folder=folder), file=sys.stderr, flush=True)
            raise


BACK = "{folder}: the new run ended before its first checkpoint, so that the earlier one is back"


def _taken_up(folder: Path, stack: ExitStack, overwrite: bool) -> bool:
    """Locks a folder, and returns whether it holds an earlier run, which may be deleted."""
    stack.enter_context(locked(folder))
    if settle(folder):
        print(BACK.format(folder=folder), file=sys.stderr, flush=True)
    _check_room(folder, overwrite)
    sweep(folder)
    return (folder / RUN).exists()


def _check_room(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that holds a run which may not be deleted, or something that is none."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name another one with --out")
    if not folder.exists() or (folder / OLD).exists():
        return
    if (folder / RUN).exists():
        begun = any((folder / name).exists() for name in ("before.json", "checkpoints", "summary.json"))
        if begun and not overwrite:
            raise ValueError(
                f"{folder} already holds a run; go on with difftilt resume {shlex.quote(str(folder))}, name"
                " another folder with --out, or delete it with --overwrite"
            )
        check_run(folder)
    elif contents(folder):
        raise ValueError(f"{folder} is not empty and holds no run; name another folder with --out")
    check_free(folder / "samples", "before", "after")
    check_no_strangers(folder)


@contextmanager
def going_on(folders: Sequence[Path], first: bool) -> Iterator[None]:
    """Keeps the folders of runs that go on while the block runs.

    A new run that was to take the place of an earlier one goes on; the earlier one is deleted once the new
    one has a checkpoint. If the new one had not even begun, the earlier one comes back.
    """
    with ExitStack() as stack:
        for folder in folders if first else ():
            if not folder.is_dir():
                raise ValueError(
                    f"{folder / RUN} does not exist; name the folder of a run, such as runs/demo"
                )
            check_inside(folder)
            stack.enter_context(locked(folder))
            if waits(folder) and (folder / RUN).exists():
                print(
                    f"the run that {folder} held before is kept until its first checkpoint", file=sys.stderr
                )
            elif settle(folder):
                print(BACK.format(folder=folder), file=sys.stderr, flush=True)
            sweep(folder)
        yield


def bring_back(folder: Path) -> None:
    """Brings an earlier run back whose successor was killed before its first checkpoint, if one was."""
    if not (folder / OLD).exists():
        return
    try:
        with locked(folder):
            if settle(folder):
                print(BACK.format(folder=folder), file=sys.stderr, flush=True)
    except BusyError:  # the new run is at work
        return
