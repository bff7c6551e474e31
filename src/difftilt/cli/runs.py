"""What commands share: the recipes by name, and the folders that runs leave behind."""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from difftilt.cli.options import check
from difftilt.domains.digits import recipe as digits
from difftilt.domains.landscape import recipe as landscape
from difftilt.domains.utr import recipe as utr
from difftilt.experiment.job import Job
from difftilt.experiment.record import VALUE, read_json, restore
from difftilt.guard import OnError
from difftilt.settings import Count, UsageError, choose

RECIPES: Mapping[str, Callable[..., Job]] = {
    "digits": digits.digits,
    "dna": landscape.dna,
    "protein": landscape.protein,
    "utr": utr.utr,
}
# options of recipes that only training has a use for
ABOUT_TRAINING = ("algorithm", "training", "target_kl", "tune_std", "tune_start")


# what a run leaves in its folder
WRITTEN = (
    *("run.json", "before.json", "summary.json", "metrics.jsonl", "report.html", "wandb-id"),
    *(
        "checkpoints",
        "checkpoints/round-*",
        "checkpoints/round-*/*",
        "checkpoints/.tmp-*",
        "checkpoints/.tmp-*/*",
    ),
    *("samples", "samples/before.*", "samples/after.*", "samples/*-seed[0-9]*.*"),
    *("tensorboard", "tensorboard/events.out.tfevents.*"),
)


@dataclasses.dataclass(frozen=True)
class ScoreOptions:
    """How to ask the reward.

    Args:
        on_error: What a sample without a valid reward does: `stop`, or be dropped and counted.
        cache: Answer a repeated sample's reward from memory; right for a deterministic black box only.
        threads: CPU threads of torch, at least 1.
    """

    on_error: OnError = "stop"
    cache: bool = False
    threads: Count = 1


def subject(command: str, words: list[str], subjects: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The recipe that a command is about, and the rest of the line."""
    if words and words[0] in ("-h", "--help"):
        print(f"usage: difftilt {command} {{{','.join(subjects)}}} [OPTIONS]")
        raise SystemExit(0)
    if not words:
        raise UsageError(f"difftilt {command} needs a recipe: {', '.join(subjects)}")
    choose("recipe", words[0], subjects)
    return words[0], words[1:]


def load(folder: Path) -> Job:
    """The job of a run folder, from its run.json."""
    record = read_run(folder)
    if record.get("task") == VALUE:
        raise ValueError(f"{folder} holds a soft value and no model: sample a recipe with --value {folder}")
    return make(record["recipe"], record["settings"])


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a folder: its recipe is known, and its settings are there."""
    record = read_json(folder / "run.json")
    choose("recipe", str(record.get("recipe")), RECIPES)
    if not isinstance(record.get("settings"), dict):
        raise ValueError(f"{folder / 'run.json'} holds no settings")
    return record


def make(name: str, settings: Mapping[str, Any]) -> Job:
    """The job of a recipe with the settings of a run.json."""
    recipe = RECIPES[name]
    restored = restore(recipe, settings)
    check(restored, typing.get_type_hints(recipe, include_extras=True))
    return recipe(**restored)


def taken(group: Any, settings: dict[str, Any]) -> Any:
    """An option group, whose options leave the settings."""
    return group(**{field.name: settings.pop(field.name) for field in dataclasses.fields(group)})


def prepare(folder: Path, overwrite: bool) -> None:
    """Makes the run folder; of an earlier run only what difftilt wrote is deleted, and only if asked for."""
    if (folder / "run.json").exists():
        if not overwrite:
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


def show(content: Mapping[str, Any]) -> None:
    """Prints numbers as JSON."""
    Console().print_json(data=plain(content))


def plain(content: Any) -> Any:
    """Numbers that are not known become null, which JSON has a word for."""
    if isinstance(content, Mapping):
        return {name: plain(value) for name, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content
