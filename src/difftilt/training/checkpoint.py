"""Checkpoints that survive a kill at any moment, and are refused by name when they are damaged.

    checkpoints/round-000012/    the state after 12 rounds
        policy.safetensors       what has been trained
        ema.safetensors          its moving average, if asked for
        training.safetensors     tensors of the optimizer
        training.json            its numbers, the scheduler and the seed
        policy-0.safetensors     of a sharded run, the rows that process 0 holds; so for ema and training
        process-0.*              what each process has for itself: algorithm, generators, counters
        MANIFEST.json            size and SHA-256 of each of these, and of itself

A checkpoint is written beside its place, brought to the disk and then renamed. Nothing here unpickles.
"""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from difftilt.data.owned import CHECKPOINT, PART, check_inside, discard, sweep
from difftilt.data.read import UnreadableError, parse_json, read_bytes, read_tensors
from difftilt.data.typed import misfit
from difftilt.training.manifest import (
    MANIFEST,
    CheckpointError,
    Manifest,
    describe,
    encode,
    name_of,
    read_manifest,
    rounds_of,
    verify,
)
from difftilt.training.tree import Packed, Tree, unpack

WEIGHTS = ("policy", "ema")


@dataclass(frozen=True)
class Snapshot:
    """The content of a checkpoint.

    Args:
        rounds: How many are done.
        shared: What all processes have in common, by file name; written by the first one.
        own: What this process has for itself.
        run: What tells the run from others, as JSON holds it.
    """

    rounds: int
    shared: Mapping[str, Packed]
    own: Packed
    run: Mapping[str, Any] = field(default_factory=dict)


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
    temporary, target = folder / f".tmp-{name_of(snapshot.rounds)}", folder / name_of(snapshot.rounds)
    first = accelerator.is_main_process
    try:
        if first:
            sweep(folder.parent)
            temporary.mkdir(parents=True)
        accelerator.wait_for_everyone()
        for name, packed in snapshot.shared.items():
            if first:
                _write_packed(temporary, name, packed)
            if packed.parts:
                _write_packed(temporary, f"{name}-{accelerator.process_index}", Packed(None, packed.parts))
        _write_packed(temporary, f"process-{accelerator.process_index}", snapshot.own)
        accelerator.wait_for_everyone()
        if first:
            _write(temporary / MANIFEST, describe(temporary, snapshot.rounds, snapshot.run))
            _sync(temporary)
            discard(target)  # it was refused, or this process would be ahead of it
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
    error: Exception | None = None
    if accelerator.is_main_process:
        try:
            path = _choose(folder)
            number.fill_(-1 if path is None else rounds_of(path))
        except (CheckpointError, UnreadableError) as damage:
            number.fill_(-2)
            error = damage
    broadcast(number)
    if number == -2:
        raise error or CheckpointError(f"no checkpoint in {folder} is whole")
    return None if number == -1 else folder / name_of(int(number))


def read(checkpoint: Path, name: str, hint: Any = Any) -> Tree:
    """One tree of a checkpoint, or None if the checkpoint does not have it.

    Args:
        hint: What its plain part must be; see `misfit`.

    Raises:
        CheckpointError: If it is something else, or if tensors hold NaN.
    """
    tensors_file, plain_file = checkpoint / f"{name}.safetensors", checkpoint / f"{name}.json"
    parts = [part for part in checkpoint.glob(f"{name}-*.safetensors") if PART.fullmatch(part.name)]
    parts.sort(key=lambda part: int(part.stem.rpartition("-")[2]))
    if not tensors_file.exists() and not plain_file.exists() and not parts:
        return None
    try:
        tensors = read_tensors(tensors_file) if tensors_file.exists() else {}
        if parts:
            tensors |= _joined(parts)
        plain = parse_json(read_bytes(plain_file), plain_file) if plain_file.exists() else None
    except UnreadableError as error:
        raise CheckpointError(str(error)) from None
    if plain is not None and (wrong := misfit(plain, hint)):
        raise CheckpointError(f"{plain_file}: {wrong}; bring the checkpoint back from a copy")
    for key, tensor in tensors.items():
        if name in WEIGHTS and tensor.is_floating_point() and tensor.isnan().any():
            raise CheckpointError(
                f"the weights of checkpoint {checkpoint} hold NaN, in {key}; remove this checkpoint to go on"
                " from the one before"
            )
    try:
        return unpack(Packed(plain, tensors))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise CheckpointError(f"{plain_file} and {tensors_file} do not belong together") from None


def _joined(files: Sequence[Path]) -> dict[str, Tensor]:
    """Whole tensors from the rows that each process held."""
    parts = [read_tensors(file) for file in files]
    try:
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    except (KeyError, RuntimeError):  # other names, or other shapes
        raise CheckpointError(f"{files[0]} and {files[-1]} do not belong together") from None


def run_of_newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    """The rounds of the newest checkpoint that says whose it is, and what it says, with the versions of then.

    Its other files are not looked at.
    """
    check_inside(folder.parent)
    for path in sorted(_checkpoints(folder), key=rounds_of, reverse=True):
        try:
            about = read_manifest(path / MANIFEST)
        except CheckpointError:
            continue
        if misfit(about, Manifest) is None:
            return about["rounds"], {**about["run"], "versions": about["versions"]}
    return None


def _choose(folder: Path) -> Path | None:
    check_inside(folder.parent)
    found = sorted(_checkpoints(folder), key=rounds_of, reverse=True)
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
    numbers = {rounds_of(path): path for path in _checkpoints(folder)}
    kept = sorted(n for n in numbers if n <= rounds)[-keep:]
    for number, path in numbers.items():
        if number not in kept:
            discard(path)


def _checkpoints(folder: Path) -> list[Path]:
    """All that stand there, whole or not."""
    named = [path for path in folder.glob("round-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return [path for path in named if any(PART.fullmatch(file.name) for file in path.iterdir())]


def _write_packed(folder: Path, name: str, packed: Packed) -> None:
    if packed.tensors:
        _write(folder / f"{name}.safetensors", safetensors.torch.save(packed.tensors))
    if packed.plain is not None:
        _write(folder / f"{name}.json", encode(packed.plain))


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
