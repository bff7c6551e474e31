"""What commands share: recipes by name, and the folders that runs leave behind."""

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from difftilt.cli.options import hints_of
from difftilt.experiment import code
from difftilt.experiment.job import Job, Maker
from difftilt.experiment.record import VALUE, read_json, read_run, restore, trust
from difftilt.rewards.scoring import Scoring
from difftilt.settings import Threads, UsageError, check_value
from difftilt.training.settings import Training

RECIPES: Mapping[str, str] = {
    "digits": "difftilt.domains.digits.recipe:digits",
    "dna": "difftilt.domains.landscape.recipe:dna",
    "protein": "difftilt.domains.landscape.recipe:protein",
    "utr": "difftilt.domains.utr.recipe:utr",
}
# what a run leaves in its folder
WRITTEN = (
    *("run.json", "before.json", "before.safetensors", "summary.json", "metrics.jsonl", "report.html"),
    *("seeds.json", "wandb-id"),
    *("checkpoints", "checkpoints/round-*", "checkpoints/round-*/*"),
    *("checkpoints/.tmp-*", "checkpoints/.tmp-*/*"),
    *("samples", "samples/before.*", "samples/after.*", "samples/*-seed[0-9]*.*"),
    *("tensorboard", "tensorboard/events.out.tfevents.*"),
)


@dataclasses.dataclass(frozen=True)
class ScoreOptions(Scoring):
    """How to ask the reward.

    Args:
        threads: CPU threads of torch, 1 to 256.
    """

    threads: Threads = 1


@dataclasses.dataclass(frozen=True)
class CodeOptions:
    """Code to execute, by name, where a run was made of code that has changed or came from elsewhere.

    Args:
        recipe: In the place of the run's recipe: FILE.py:NAME.
        reward: In the place of its reward: FILE.py:NAME or command:COMMAND.
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
    return build(made_of["recipe"], settings_of(made_of["recipe"], made_of["settings"]))


def settings_of(recipe: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe from a run.json whose code may be executed."""
    function = recipe_of(recipe)
    name = (settings.get("algorithm") or {}).get("name", "")
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


def prepare(folder: Path, overwrite: bool) -> None:
    """Makes the run folder; of an earlier run only what difftilt wrote is deleted, and only if asked for."""
    if (folder / "run.json").exists():
        begun = any((folder / name).exists() for name in ("before.json", "checkpoints", "summary.json"))
        if begun and not overwrite:
            raise ValueError(
                f"{folder} already holds a run; go on with difftilt resume {folder}, name another folder with"
                " --out, or delete it with --overwrite"
            )
        clear(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run; name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)


def clear(folder: Path) -> None:
    """Deletes the run of a folder; what else lies there stays where it is.

    Raises:
        ValueError: Before anything is deleted, if the folder's run.json is not one of ours, or if a folder
            of the run is a link to elsewhere.
    """
    if "difftilt" not in (read_json(folder / "run.json").get("versions") or {}):
        raise ValueError(f"{folder / 'run.json'} was not written by difftilt, so nothing is deleted")
    for place in (folder, *(folder / name for name in ("checkpoints", "samples", "tensorboard"))):
        if place.is_symlink():
            raise ValueError(f"{place} is a link to elsewhere, so nothing is deleted; name another folder")
    found = sorted({path for pattern in WRITTEN for path in folder.glob(pattern)}, reverse=True)
    for path in found:  # what lies in a folder before the folder itself
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        else:
            path.unlink()
