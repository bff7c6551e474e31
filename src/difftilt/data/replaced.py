"""The earlier run of a folder makes way for a new one, and is deleted only once the new one has a checkpoint.

    .old-run/files.json      the paths of its files within the run folder
    .old-run/PATH            each of them, from the moment it has made way

A kill at any moment leaves one of three states: some files have not made way yet or are back already (all
come back), all have made way and the new run has no checkpoint (all can come back), or it has one.
"""

import json
import secrets
import stat
from pathlib import Path
from typing import TypedDict

from difftilt.data.owned import (
    ADAPTER,
    CHECKPOINT,
    CONTENTS,
    RUN,
    check_inside,
    delete,
    is_run_file,
    run_files,
)
from difftilt.data.read import UnreadableError, read_json

OLD, GONE, LIST = ".old-run", ".old-run-gone-", "files.json"


class _List(TypedDict):
    files: list[str]


def set_aside(folder: Path) -> None:
    """Moves the run of a folder out of the way of a new one."""
    names, aside = run_files(folder), folder / OLD
    aside.mkdir()
    part = aside / f"{LIST}.part"
    part.write_text(json.dumps({"files": names}, indent=1))
    part.replace(aside / LIST)
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).rename(aside / name)
    delete(folder, names)  # the folders in which nothing is left


def waits(folder: Path) -> bool:
    """Whether an earlier run has made way for one that has no checkpoint yet."""
    names = _names(folder)
    return bool(names) and all((folder / OLD / name).exists() for name in names)


def put_back(folder: Path) -> bool:
    """Brings the earlier run back, in the place of one without a checkpoint; returns whether it did."""
    aside, names = folder / OLD, _names(folder)
    if names is None:
        return False
    if waits(folder):
        check_inside(folder)
        delete(folder, run_files(folder))
    for name in names:
        if (aside / name).exists():
            if (folder / name).exists():
                raise UnreadableError(
                    f"both {folder / name} and {aside / name} exist, so that nothing more was moved; keep the"
                    " one that you want as the former"
                )
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).rename(folder / name)
    _clear(aside, names)
    return bool(names)


def let_go(folder: Path) -> None:
    """Deletes the earlier run, if there is one: the new one has a checkpoint."""
    if not (folder / OLD).is_dir():
        return
    gone = folder / f"{GONE}{secrets.token_hex(4)}"
    (folder / OLD).rename(gone)  # at once, so that a kill leaves no half of a run that would come back
    _clear(gone, _listed(gone / LIST) or [])


def settle(folder: Path) -> bool:
    """Finishes what a kill interrupted, and returns whether the earlier run came back."""
    for gone in folder.glob(f"{GONE}*"):
        if gone.is_dir() and not gone.is_symlink():
            _clear(gone, _listed(gone / LIST) or [])
    if _names(folder) is None:
        return False
    if _has_checkpoint(folder) and waits(folder):
        let_go(folder)
        return False
    return put_back(folder)


def _has_checkpoint(folder: Path) -> bool:
    """Whether a round of the new run is on the disk."""
    found = (folder / "checkpoints").glob("round-*/MANIFEST.json")
    numbers = [CHECKPOINT.fullmatch(path.parent.name) for path in found]
    return any(int(number[1]) > 0 for number in numbers if number)


def _names(folder: Path) -> list[str] | None:
    """The files of the earlier run; None if there is none."""
    aside = folder / OLD
    if not aside.is_dir() and not aside.is_symlink():
        return None
    for path in (aside, *aside.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise UnreadableError(f"{path} is neither a file nor a folder, so nothing was moved; remove it")
    if not (aside / LIST).exists():
        _clear(aside, [])
        return None
    return _listed(aside / LIST)


def _listed(path: Path) -> list[str]:
    if not path.exists():
        return []
    names: list[str] = read_json(path, _List)["files"]
    lists = (f"samples/{CONTENTS}", f"{ADAPTER}/{CONTENTS}")
    if wrong := [name for name in names if not is_run_file(name) and name not in lists]:
        raise UnreadableError(f"{path} names {wrong[0]!r}, which no run leaves, so nothing was moved")
    return sorted(names, key=lambda name: (name == RUN, name))


def _clear(aside: Path, names: list[str]) -> None:
    """Deletes the files and the list, and the folder if nobody put anything else there."""
    delete(aside, names)
    delete(aside.parent, [f"{aside.name}/{LIST}", f"{aside.name}/{LIST}.part"])
