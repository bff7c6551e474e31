"""What each process of a run has for itself, and what becomes of it when another number of them goes on."""

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from difftilt.training import checkpoint
from difftilt.training.manifest import CheckpointError


class Own(TypedDict):
    """The plain part of `process-N` in a checkpoint."""

    algorithm: dict[str, Any]
    reward: dict[str, Any]
    diversity: NotRequired[dict[str, Any]]
    forward: int
    backward: int
    random: dict[str, Any]
    generators: list[Any]


def own_of(path: Path, process: int, processes: int, before: int) -> dict[str, Any]:
    """What a checkpoint holds for one process.

    On another number of processes, calls are dealt evenly, remembered answers are everybody's, and each goes
    on from the memory of one of those before.

    Args:
        processes: How many there are now.
        before: How many there were.

    Raises:
        CheckpointError: If it is missing.
        ValueError: If there is state that cannot be dealt: of private generators, or of the loop's body.
    """
    own = _read(path, process % before)
    if processes == before:
        return own
    if own["generators"] or own.get("body") is not None:
        raise ValueError(
            f"the run in {path} has private generators or a loop with a state of its own, which belong to its"
            f" {before} processes, but got {processes}; resume it on as many as it was started with"
        )
    every = [_read(path, k) for k in range(before)]
    own["forward"], own["backward"] = (
        _dealt(sum(each[name] for each in every), process, processes) for name in ("forward", "backward")
    )
    reward = own["reward"]
    for name in ("calls", "dropped"):
        reward[name] = _dealt(sum(each["reward"][name] for each in every), process, processes)
    if reward["cache"] is not None:
        for name in ("cache", "told"):
            known = (each["reward"].get(name, {}) for each in every)  # runs of before have no `told`
            reward[name] = {key: one for each in known for key, one in each.items()}
    return own


def _read(path: Path, process: int) -> dict[str, Any]:
    own = checkpoint.read(path, f"process-{process}", Own)
    if own is None:
        raise CheckpointError(f"{path} lacks the state of process {process}; bring it back from a copy")
    return own


def _dealt(count: int, process: int, processes: int) -> int:
    """The share of a count that falls to a process, so that the sum stays."""
    return count // processes + (process < count % processes)
