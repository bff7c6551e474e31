"""Recipes, rewards and algorithms by name: ours, those of installed packages, and those in a user's own file.

    digits                 one of ours, or one that a package registers as an entry point
    my_file.py:score       a function or class in a file, whose folder it may import from
    package.module:score   the same in an installed package
    command:./dock.sh      for rewards: a command that reads samples as lines and writes numbers
    learned:runs/reward    for rewards: what difftilt reward fit learned from measurements
    http://host:80/score   for rewards: a server that reads samples and writes numbers as JSON
    clip:FOLDER_OR_ID      for rewards of images: a CLIP model
    aesthetic:CLIP:HEAD    for rewards of images: a CLIP model, and a head on its features

A run folder never decides which code is executed. What a run was made of is written into its run.json with
its hash, and signed with a key that only this user's account holds. Code that was changed, or that a run from
elsewhere names, is executed only if it is named anew on the command line.
"""

import hashlib
import hmac
import importlib
import importlib.util
import json
import os
import secrets
import shlex
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from difftilt.settings import UsageError, choose, kebab

GROUPS = {"recipe": "difftilt.recipes", "reward": "difftilt.rewards", "algorithm": "difftilt.algorithms"}
COMMAND = "command:"  # begins a reward that is asked through a shell command
LEARNED = "learned:"  # begins a reward that was learned, in a folder
CLIP = "clip:"  # begins a reward that is a CLIP model, in a folder or on the Hugging Face hub
AESTHETIC = "aesthetic:"  # begins a reward that is a head on the features of a CLIP model
SERVER = ("http://", "https://")  # begin a reward that a server computes
ELSEWHERE = (COMMAND, LEARNED, CLIP, AESTHETIC, *SERVER)
_found: dict[str, Any] = {}  # what was found outside of the package, by the text that named it


def find(kind: str, text: str, known: Mapping[str, Any]) -> Any:
    """The recipe, reward or algorithm of that name.

    Args:
        kind: A key of `GROUPS`.
        text: As above.
        known: Those of the package, by name; a text `module:name` in the place of one is imported when it is
            asked for.

    Raises:
        UsageError: In one sentence, if there is none.
    """
    if text in known:
        place = known[text]
        return _attribute(*place.split(":")) if isinstance(place, str) else place
    plugins = registered(kind)
    if text in plugins:
        return plugins[text].load()
    if not outside(text):
        choose(kind, text, {**known, **plugins, f"FILE.py:{kind.upper()}": None})
    if text not in _found:
        _found[text] = _load(kind, text)
    return _found[text]


def registered(kind: str) -> dict[str, Any]:
    """What installed packages offer, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUPS[kind])}


def outside(text: str) -> bool:
    """Whether a text names something in a file or module, and not one of a list."""
    place, _, name = text.rpartition(":")
    return bool(place) and name.isidentifier() and not text.startswith(ELSEWHERE)


def executes(text: str) -> bool:
    """Whether something outside of difftilt decides what this text does: code, a model or a server."""
    return outside(text) or text.startswith(ELSEWHERE)


def name_of(thing: Any) -> str:
    """What a class or function is called on the command line."""
    for text, found in _found.items():
        if found is thing:
            return text
    return kebab(thing.__name__)


def known_outside(text: str) -> Any:
    """What was found under a text in this process, or None."""
    return _found.get(text)


def _load(kind: str, text: str) -> Any:
    place, _, name = text.rpartition(":")
    module = _file(Path(place)) if place.endswith(".py") else _import(place)
    if name not in vars(module):
        offered = [
            n for n, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__
        ]
        raise UsageError(
            f"{place} has no {name!r} for a {kind}; it defines {', '.join(offered) or 'nothing'}"
        )
    thing = getattr(module, name)
    if not callable(thing):
        raise UsageError(f"{text} is a {type(thing).__name__}, but a {kind} is a function or a class")
    return thing


def _file(path: Path) -> ModuleType:
    """A file as a module, which may import its neighbours like a script."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist or is no file, so nothing can be loaded from it")
    path = path.resolve()
    name = f"difftilt_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be loaded as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        line = _line_in(error, path)
        raise UsageError(
            f"{path} raised {type(error).__name__} ({error}) in line {line} when it was loaded"
        ) from error
    return module


def _line_in(error: BaseException, path: Path) -> int:
    """The last line of a file that an error passed."""
    if isinstance(error, SyntaxError):
        return error.lineno or 0
    lines, trace = [0], error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            lines.append(trace.tb_lineno)
        trace = trace.tb_next
    return lines[-1]


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"module {name!r} cannot be imported ({error}); install it, or name a file"
        ) from error


def _attribute(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def record(texts: Iterable[str]) -> dict[str, Any]:
    """Where the code that these texts name lies, and its hash; for run.json."""
    return {text: _fingerprint(text) for text in dict.fromkeys(texts) if executes(text)}


def _fingerprint(text: str) -> dict[str, str]:
    if text.startswith(COMMAND):
        script = Path((shlex.split(text.removeprefix(COMMAND)) or [""])[0])
        return {"file": str(script.resolve()), "sha256": _digest(script)} if script.is_file() else {}
    if text.startswith(LEARNED):
        from difftilt.rewards.saved import WEIGHTS  # slow to load

        path = (Path(text.removeprefix(LEARNED)) / f"{WEIGHTS}.safetensors").resolve()
        return {"file": str(path), "sha256": _digest(path)}
    if text.startswith(SERVER):
        return {}
    if text.startswith(CLIP):
        path = (Path(text.removeprefix(CLIP)) / "model.safetensors").resolve()
        return {"file": str(path), "sha256": _digest(path)} if path.is_file() else {}
    place, _, _ = text.rpartition(":")
    if text.startswith(AESTHETIC):
        path = Path(text.rpartition(":")[2]).resolve()
        return {"file": str(path), "sha256": _digest(path)} if path.is_file() else {}
    if place.endswith(".py"):
        path = Path(place).resolve()
    else:
        path = Path(getattr(sys.modules.get(place), "__file__", None) or "")
    return {"file": str(path), "sha256": _digest(path)}


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def sign(content: Mapping[str, Any]) -> str:
    """The signature of what a run was made of, by this user's key; empty if there can be no key."""
    key = _key()
    text = json.dumps(content, sort_keys=True).encode()
    return hmac.new(key, text, "sha256").hexdigest() if key else ""


def is_signed(content: Mapping[str, Any], signature: Any) -> bool:
    """Whether this user signed that on this machine."""
    return bool(signature) and hmac.compare_digest(sign(content), str(signature))


def _key() -> bytes:
    """32 random bytes that are made once, which only this user can read."""
    try:
        path = Path.home() / ".config" / "difftilt" / "key"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(32))
        return path.read_bytes()
    except (OSError, RuntimeError):  # no home, or one that cannot be written
        return b""


def check_trusted(content: Mapping[str, Any], code: Mapping[str, Any], signature: Any, folder: Path) -> None:
    """Makes sure that the code of a run may be executed; nothing is executed here.

    Args:
        content: What was signed.
        code: What `record` returned when the run was made, without what the user has named anew.

    Raises:
        ValueError: In one sentence, if the run is not this user's own, or a file has changed since.
    """
    for text, about in code.items():
        again = f"look at it, and name it again to go on: --{_option(content, text)}"
        if not is_signed(content, signature):
            raise ValueError(
                f"{folder} asks for code outside of difftilt, {text}, but was not made by this user on this"
                f" machine, or was changed since, so nothing was executed; {again}"
            )
        if about and _digest(Path(about["file"])) != about["sha256"]:
            raise ValueError(
                f"{about['file']} is missing or has changed since {folder} was made from it, so nothing was"
                f" executed; {again}"
            )


def _option(content: Mapping[str, Any], text: str) -> str:
    """The option that names a text, with what it was given."""
    if content.get("recipe") == text:
        return f"recipe {text}"
    from difftilt.rewards.combined import names_in  # loads torch, as what was made of it has, but not all do

    reward = str((content.get("settings") or {}).get("reward"))
    return f"reward {reward}" if text in names_in(reward) else f"algorithm {text}"
