"""Settings as JSON and back, so that a run can be started again from its folder."""

import dataclasses
import json
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from difftilt.atomic import atomic_file
from difftilt.settings import kebab, settable
from difftilt.training.checkpoint import versions

VALUE = "value"  # the task of a run that learns a soft value


def to_json(value: Any) -> Any:
    """Settings as plain JSON; a dataclass becomes its fields, under its name on the command line."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: to_json(getattr(value, name)) for name in settable(type(value))}
        return {"name": kebab(type(value).__name__), **fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_json(value: Any, hint: Any) -> Any:
    """The setting that `to_json` wrote, for a parameter annotated with `hint`: equal, type by type."""
    options = _options(hint)
    if isinstance(value, dict):
        return _settings(value, options)
    if isinstance(value, list):
        sequence = next((option for option in options if typing.get_origin(option) in (tuple, list)), list)
        kind, inner = typing.get_origin(sequence) or list, typing.get_args(sequence)
        inner = inner[:1] * len(value) if kind is list or Ellipsis in inner else inner
        return kind(from_json(*pair) for pair in zip(value, inner or [Any] * len(value), strict=True))
    if isinstance(value, int) and not isinstance(value, bool) and float in options and int not in options:
        return float(value)
    return Path(value) if Path in options and isinstance(value, str) else value


def _options(hint: Any) -> list[Any]:
    """The types that a value may have, without what is said of their ranges."""
    if typing.get_origin(hint) is typing.Annotated:
        return _options(hint.__origin__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [inner for option in typing.get_args(hint) for inner in _options(option)]
    return [hint]


def _settings(value: dict[str, Any], options: list[Any]) -> Any:
    """An instance of the dataclass that the JSON names."""
    named: dict[str, Any] = {
        kebab(option.__name__): option
        for option in options
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    }
    if value.get("name") not in named:
        raise ValueError(
            f"run.json names '{value.get('name')}', which this version of difftilt does not have: it has"
            f" {', '.join(named)}"
        )
    known = settable(option := named[value["name"]])
    return option(**{k: from_json(v, known[k]) for k, v in value.items() if k in known})


def restore(recipe: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe from the settings of a run."""
    hints = typing.get_type_hints(recipe, include_extras=True)
    unknown = set(settings) - set(hints)
    if unknown:
        raise ValueError(f"run.json has settings that its recipe does not know: {', '.join(sorted(unknown))}")
    return {name: from_json(value, hints[name]) for name, value in settings.items()}


def describe(recipe: str, settings: Mapping[str, Any], processes: int, device: str) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "recipe": recipe,
        "settings": {name: to_json(value) for name, value in settings.items()},
        "seed": settings["training"].seed,
        "versions": versions(),
        "device": device,
        "processes": processes,
        "threads": settings["training"].threads,
        "git_revision": _git_revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["difftilt", *sys.argv[1:]]),
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a run folder.

    Raises:
        ValueError: If the file is missing or is no JSON object.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; name the folder of a run, such as runs/demo") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} instead of a JSON object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of it."""
    with atomic_file(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n")


def _git_revision() -> str | None:
    """The revision of the working folder's repository, if it is one."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None
