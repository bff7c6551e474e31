"""Settings as JSON and back, so that a run can be started again from its folder."""

import dataclasses
import json
import shlex
import subprocess
import sys
import types
import typing
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from difftilt.data.atomic import atomic_file
from difftilt.data.owned import RUN, check_inside
from difftilt.data.read import UnreadableError, read_json
from difftilt.data.typed import misfit
from difftilt.evaluation.schema import Info
from difftilt.experiment import code
from difftilt.rewards.combined import names_in
from difftilt.settings import settable
from difftilt.training.manifest import versions

VALUE = "value"  # the task of a run that learns a soft value


def to_json(value: Any) -> Any:
    """Settings as plain JSON; a dataclass becomes its fields, under its name on the command line.

    Raises:
        TypeError: If a setting is nothing that can be written down, such as a function.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: to_json(getattr(value, name)) for name in settable(type(value))}
        return {"name": code.name_of(type(value)), **fields}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str | Path):
        return str(value) if isinstance(value, Path) else value
    raise TypeError(f"a {type(value).__name__} cannot be written into run.json")


def from_json(value: Any, hint: Any) -> Any:
    """The setting that `to_json` wrote, for a parameter annotated with `hint`: equal, type by type."""
    options = _options(hint)
    if isinstance(value, dict):
        return _settings(value, options)
    if isinstance(value, list):
        sequence = next((option for option in options if typing.get_origin(option) in (tuple, list)), list)
        kind, inner = typing.get_origin(sequence) or list, typing.get_args(sequence)
        inner = inner[:1] * len(value) if kind is list or Ellipsis in inner else inner
        inner = inner if len(inner) == len(value) else [Any] * len(value)
        return kind(from_json(*pair) for pair in zip(value, inner, strict=True))
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
    name = value.get("name")
    named: dict[str, Any] = {
        code.name_of(option): option
        for option in options
        if isinstance(option, type) and dataclasses.is_dataclass(option)
    }
    option = named.get(str(name)) or code.known_outside(str(name))
    if option is None:
        raise ValueError(
            f"run.json names '{name}', which this version of difftilt does not have: it has"
            f" {', '.join(named)}"
        )
    known = settable(option)
    return option(**{k: restored(f"{name}.{k}", v, known[k]) for k, v in value.items() if k in known})


def restored(name: str, value: Any, hint: Any) -> Any:
    """The setting that was written, if it is what its annotation says."""
    found = from_json(value, hint)
    if wrong := misfit(found, hint, name):
        raise ValueError(f"run.json: {wrong}; put it back")
    return found


def restore(recipe: Callable[..., Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe from the settings of a run."""
    hints = typing.get_type_hints(recipe, include_extras=True)
    unknown = set(settings) - set(hints)
    if unknown:
        raise ValueError(f"run.json has settings that its recipe does not know: {', '.join(sorted(unknown))}")
    return {name: restored(name, value, hints[name]) for name, value in settings.items()}


def describe_settings(recipe: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of run.json that says what a run was made of.

    Args:
        recipe: As it is named on the command line.
        settings: Its arguments.
    """
    made_of = {"recipe": recipe, "settings": {name: to_json(value) for name, value in settings.items()}}
    outside = code.record(_texts(made_of))
    return made_of | ({"code": outside} if outside else {})


def describe(seed: int, processes: int, device: str) -> dict[str, Any]:
    """The part of run.json that says where and when."""
    return {
        "id": uuid.uuid4().hex,
        "seed": seed,
        "versions": versions(),
        "device": device,
        "processes": processes,
        "git_revision": _git_revision(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["difftilt", *sys.argv[1:]]),
    }


def read_run(folder: Path) -> dict[str, Any]:
    """The run.json of a folder, which holds settings.

    Raises:
        ValueError: If it does not, or if its job cannot be made again.
    """
    check_inside(folder)
    if not (folder / RUN).exists():
        raise UnreadableError(f"{folder / RUN} does not exist; name the folder of a run, such as runs/demo")
    record = read_json(folder / RUN, Info)
    if record.get("cannot_be_made_again"):
        raise ValueError(
            f"{folder} was made in Python by {record.get('recipe')} and cannot be made again by command,"
            f" since {record['cannot_be_made_again']}; go on in Python, with finetune(job, FOLDER) or sample"
        )
    if "settings" not in record or "recipe" not in record:
        raise ValueError(f"{folder / 'run.json'} holds no settings")
    return record


def trust(folder: Path, record: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    """What a run was made of, once the code that it names may be executed.

    Args:
        record: Its run.json.
        named: What the user has named anew: a recipe, reward or algorithm, which stands in the place of the
            run's own.

    Returns:
        Its recipe and settings.
    """
    made_of = {"recipe": record["recipe"], "settings": record["settings"]}
    asked = _texts(made_of)
    outside = {text for text in asked if code.executes(text)}
    about: dict[str, Any] = record.get("code") or {}
    unnamed = {text: about.get(text, {"file": text, "sha256": ""}) for text in outside}
    settings = dict(record["settings"])
    replaced = {"recipe": record["recipe"], "reward": settings.get("reward")}
    algorithm = settings.get("algorithm")
    replaced["algorithm"] = algorithm.get("name") if isinstance(algorithm, dict) else None
    for option in named:
        for text in _rewards(replaced[option]) if option == "reward" else [str(replaced[option])]:
            unnamed.pop(text, None)
    code.check_trusted(made_of | {"code": about}, unnamed, record.get("signature"), folder)
    training = settings.get("training")
    ledger = training.get("ledger") if isinstance(training, dict) else None
    if ledger and not code.is_signed(made_of | {"code": about}, record.get("signature")):
        raise ValueError(
            f"{folder} asks for the ledger {ledger}, but was not made by this user on this machine, or was"
            " changed since, so that file is not opened; start a run of your own with --ledger"
        )
    if "reward" in named:
        settings["reward"] = named["reward"]
    if "algorithm" in named:
        settings["algorithm"] = {
            **(algorithm if isinstance(algorithm, dict) else {}),
            "name": named["algorithm"],
        }
    return {"recipe": named.get("recipe", record["recipe"]), "settings": settings}


def _texts(value: Any) -> list[str]:
    """The recipe, the rewards and the names of settings: what may stand for code."""
    settings = value["settings"]
    names = [x.get("name") for x in settings.values() if isinstance(x, dict)]
    texts = (value["recipe"], *_rewards(settings.get("reward")), *names)
    return [text for text in texts if isinstance(text, str)]


def _rewards(text: Any) -> list[str]:
    """The rewards that a setting asks for, of which a sum has several."""
    return names_in(text) if isinstance(text, str) else []


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
