"""Checkpoints that survive a kill at any moment, and are refused by name when they are damaged.

    checkpoints/round-000012/    the state after 12 rounds
        policy.safetensors       what has been trained
        ema.safetensors          its moving average, if asked for
        training.safetensors     tensors of the optimizer
        training.json            its numbers, the scheduler and the seed
        process-0.*              what each process has for itself: algorithm, generators, counters
        MANIFEST.json            size and SHA-256 of each of these, and of itself

A checkpoint is written beside its place, brought to the disk and then renamed. Nothing here unpickles.
"""

import hashlib
import json
import os
import platform
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast

from difftilt.training.tree import Packed, Tree, unpack

FORMAT = 2
MANIFEST = "MANIFEST.json"
_PACKAGES = ("difftilt", "torch", "accelerate", "safetensors", "numpy")


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint.

    Args:
        rounds: How many are done.
        shared: What all processes have in common, by file name; written by the first one.
        own: What this process has for itself.
    """

    rounds: int
    shared: Mapping[str, Packed]
    own: Packed


class CheckpointError(RuntimeError):
    """A checkpoint is damaged or could not be written. The message names the file."""


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was passed over."""


def save(folder: Path, snapshot: Snapshot, accelerator: Accelerator, keep: int = 2) -> None:
    """Writes the checkpoint `round-<rounds>`; every process must call it.

    Args:
        folder: Of all checkpoints of the run, on a disk that all processes share.
        keep: How many checkpoints remain, at least 1.

    Raises:
        CheckpointError: If the disk refuses. The checkpoints from before are as they were.
    """
    temporary, target = folder / f".tmp-{_name(snapshot.rounds)}", folder / _name(snapshot.rounds)
    first = accelerator.is_main_process
    try:
        if first:
            sweep(folder)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        for name, packed in snapshot.shared.items() if first else ():
            _write_packed(temporary, name, packed)
        _write_packed(temporary, f"process-{accelerator.process_index}", snapshot.own)
        accelerator.wait_for_everyone()
        if first:
            _write(temporary / MANIFEST, _seal(_describe(temporary, snapshot.rounds)))
            _sync(temporary)
            if target.exists():  # it was refused, or this process would be ahead of it
                shutil.rmtree(target)
            temporary.replace(target)
            _sync(folder)
            _sync(folder.parent)
            _prune(folder, snapshot.rounds, keep)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint {target} could not be written ({error}); the ones from before are still good"
        ) from error
    accelerator.wait_for_everyone()


def newest(folder: Path, accelerator: Accelerator | None = None) -> Path | None:
    """The newest checkpoint that is whole; damaged ones are passed over with a warning that names them.

    Args:
        folder: Of all checkpoints of the run.
        accelerator: If given, the first process chooses for all.

    Raises:
        CheckpointError: If there are checkpoints, but not one is whole.
    """
    if accelerator is None or accelerator.num_processes == 1:
        return _choose(folder)
    number = torch.tensor(-1, device=accelerator.device)  # none; -2 stands for an error
    error = None
    if accelerator.is_main_process:
        try:
            path = _choose(folder)
            number.fill_(-1 if path is None else _number(path))
        except CheckpointError as damage:
            number.fill_(-2)
            error = damage
    broadcast(number)
    if number == -2:
        raise error or CheckpointError(f"no checkpoint in {folder} is whole")
    return None if number == -1 else folder / _name(int(number))


def read(checkpoint: Path, name: str) -> Tree:
    """One tree of a checkpoint, or None if the checkpoint does not have it."""
    tensors_file, plain_file = checkpoint / f"{name}.safetensors", checkpoint / f"{name}.json"
    if not tensors_file.exists() and not plain_file.exists():
        return None
    tensors = safetensors.torch.load_file(tensors_file) if tensors_file.exists() else {}
    plain = json.loads(plain_file.read_text()) if plain_file.exists() else None
    return unpack(Packed(plain, tensors))


def verify(checkpoint: Path) -> None:
    """Raises CheckpointError, naming the file, unless every byte is as it was written."""
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{manifest} is missing")
    data = manifest.read_bytes()
    try:
        content = json.loads(data)
        content.pop("sha256")
        if _seal(content) != data:
            raise ValueError
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CheckpointError(f"{manifest} is not as it was written") from None
    if content["format"] != FORMAT:
        raise CheckpointError(f"{manifest} has format {content['format']}, but this version reads {FORMAT}")
    if _name(content["rounds"]) != checkpoint.name:
        raise CheckpointError(f"{manifest} belongs to {_name(content['rounds'])}")
    for name, expected in content["files"].items():
        file = checkpoint / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise CheckpointError(f"{file} has {size} bytes, but {expected['bytes']} were written")
        if _digest(file) != expected["sha256"]:
            raise CheckpointError(f"{file} is not as it was written: its SHA-256 differs")


def sweep(folder: Path) -> None:
    """Removes what an interrupted write left behind."""
    for path in folder.glob(".tmp-*"):
        shutil.rmtree(path)


def _choose(folder: Path) -> Path | None:
    found = sorted((p for p in folder.glob("round-*") if p.is_dir()), reverse=True)
    for path in found:
        try:
            verify(path)
        except CheckpointError as damage:
            warnings.warn(f"{damage}; this checkpoint is not used", CheckpointWarning, stacklevel=3)
        else:
            return path
    if found:
        raise CheckpointError(
            f"none of the checkpoints {', '.join(p.name for p in reversed(found))} in {folder} is whole;"
            " bring one back from a copy, or remove them all to start again"
        )
    return None


def _prune(folder: Path, rounds: int, keep: int) -> None:
    """Keeps the newest checkpoints up to this one. Those ahead of it were refused when the run resumed."""
    numbers = {_number(path): path for path in folder.glob("round-*")}
    kept = sorted(n for n in numbers if n <= rounds)[-keep:]
    for number, path in numbers.items():
        if number not in kept:
            # out of sight first, so that a kill leaves no half of a checkpoint
            hidden = path.rename(folder / f".tmp-old-{path.name}")
            shutil.rmtree(hidden)


def _name(rounds: int) -> str:
    return f"round-{rounds:06d}"


def _number(path: Path) -> int:
    return int(path.name.removeprefix("round-"))


def _describe(folder: Path, rounds: int) -> dict[str, Any]:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.iterdir())
    }
    return {"format": FORMAT, "rounds": rounds, "versions": versions(), "files": files}


@cache
def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


def _seal(content: Mapping[str, Any]) -> bytes:
    """JSON that ends on the SHA-256 of the rest."""
    digest = hashlib.sha256(_encode(content)).hexdigest()
    return _encode({**content, "sha256": digest})


def _encode(content: Any) -> bytes:
    return json.dumps(content, indent=1).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_packed(folder: Path, name: str, packed: Packed) -> None:
    if packed.tensors:
        _write(folder / f"{name}.safetensors", safetensors.torch.save(packed.tensors))
    if packed.plain is not None:
        _write(folder / f"{name}.json", _encode(packed.plain))


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
