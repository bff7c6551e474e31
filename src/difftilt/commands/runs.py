"""What commands share: the recipes by name, and the folders that runs leave behind."""

import math
import shutil
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from difftilt.options import UsageError, check, choose
from difftilt.recipes import digits, landscape, utr
from difftilt.recipes.job import Job
from difftilt.recipes.record import read_json, restore

RECIPES: Mapping[str, Callable[..., Job]] = {
    "digits": digits.digits,
    "dna": landscape.dna,
    "protein": landscape.protein,
    "utr": utr.utr,
}


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
    record = read_json(folder / "run.json")
    recipe = choose("recipe", str(record.get("recipe")), RECIPES)
    settings = record.get("settings")
    if not isinstance(settings, dict):
        raise ValueError(f"{folder / 'run.json'} holds no settings")
    restored = restore(recipe, settings)
    check(restored, typing.get_type_hints(recipe, include_extras=True))
    return recipe(**restored)


def prepare(folder: Path, overwrite: bool) -> None:
    """Makes the run folder; an earlier run is only deleted if asked for."""
    if (folder / "run.json").exists():
        if not overwrite:
            raise ValueError(
                f"{folder} already holds a run; go on with difftilt resume {folder}, name another folder with"
                " --out, or delete it with --overwrite"
            )
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and holds no run; name another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)


def show(content: Mapping[str, Any]) -> None:
    """Prints numbers as JSON."""
    Console().print_json(data=plain(content))


def plain(content: Any) -> Any:
    """Numbers that are not known become null, which JSON has a word for."""
    if isinstance(content, Mapping):
        return {name: plain(value) for name, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content
