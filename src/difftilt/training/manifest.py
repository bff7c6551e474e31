"""What a checkpoint holds, and to which run it belongs: `MANIFEST.json`."""

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from difftilt.data.owned import PART
from difftilt.data.read import UnreadableError, check_regular, parse_json, read_bytes
from difftilt.data.typed import misfit

FORMAT = 3
MANIFEST = "MANIFEST.json"
_PACKAGES = ("difftilt", "torch", "accelerate", "safetensors", "numpy")


class _File(TypedDict):
    bytes: int
    sha256: str


class Manifest(TypedDict):
    """`MANIFEST.json`, without its own hash."""

    format: int
    rounds: int
    versions: dict[str, str]
    run: dict[str, Any]
    files: dict[str, _File]


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or could not be written. The message names the file."""


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def name_of(rounds: int) -> str:
    """The folder of the checkpoint after so many rounds."""
    return f"round-{rounds:06d}"


def rounds_of(checkpoint: Path) -> int:
    """After how many rounds a checkpoint was made, by its name."""
    return int(checkpoint.name.removeprefix("round-"))


def describe(folder: Path, rounds: int, run: Mapping[str, Any]) -> bytes:
    """The manifest of the files in a folder."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.iterdir())
    }
    about = {"format": FORMAT, "rounds": rounds, "versions": versions(), "run": dict(run), "files": files}
    return _seal(about)


def verify(checkpoint: Path) -> None:
    """Raises CheckpointError, naming the file, unless every byte is as it was written."""
    manifest = checkpoint / MANIFEST
    if not manifest.exists():
        raise CheckpointError(f"{manifest} is missing")
    content = read_manifest(manifest)
    if content["format"] != FORMAT:
        raise CheckpointError(f"{manifest} has format {content['format']}, but this version reads {FORMAT}")
    if wrong := misfit(content, Manifest):
        raise CheckpointError(f"{manifest}: {wrong}")
    if name_of(content["rounds"]) != checkpoint.name:
        raise CheckpointError(f"{manifest} belongs to {name_of(content['rounds'])}")
    strange = {file.name for file in checkpoint.iterdir() if PART.fullmatch(file.name)} - {MANIFEST}
    if strange := sorted(strange - content["files"].keys()):
        raise CheckpointError(f"{checkpoint / strange[0]} was not written with the rest")
    for name, expected in content["files"].items():
        if not PART.fullmatch(name):
            raise CheckpointError(f"{manifest} names {name!r}, which no checkpoint has")
        _verify_file(checkpoint / name, expected)


def read_manifest(manifest: Path) -> dict[str, Any]:
    """What a manifest says, if it is as it was written."""
    try:
        data = read_bytes(manifest)
        content = parse_json(data, manifest)
        content.pop("sha256")
        if _seal(content) != data or not isinstance(content["format"], int):
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{manifest} is not as it was written") from None
    return content


def _verify_file(file: Path, expected: _File) -> None:
    if not file.exists():
        raise CheckpointError(f"{file} is missing")
    try:
        size = check_regular(file)
    except UnreadableError as error:
        raise CheckpointError(str(error)) from None
    if size != expected["bytes"]:
        raise CheckpointError(f"{file} has {size} bytes, but {expected['bytes']} were written")
    if _digest(file) != expected["sha256"]:
        raise CheckpointError(f"{file} is not as it was written: its SHA-256 differs")


def _seal(content: Mapping[str, Any]) -> bytes:
    """JSON that ends on the SHA-256 of the rest."""
    digest = hashlib.sha256(encode(content)).hexdigest()
    return encode({**content, "sha256": digest})


def encode(content: Any) -> bytes:
    """JSON as checkpoints hold it."""
    return json.dumps(content, indent=1).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
