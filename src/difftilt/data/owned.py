"""Which files of a folder difftilt wrote. Files and folders of a run are deleted here and nowhere else.

Of a run these are known names (see `FILES` and `FOLDERS`); wherever names are not known beforehand, such as
those of samples and of pretrained networks, `contents.json` says them. What else lies in a folder is the
user's: it is never deleted, replaced or moved.
"""

import json
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from difftilt.data.lock import LOCK
from difftilt.data.read import UnreadableError, kind_of, read_json

CONTENTS = "contents.json"  # which files of a folder are ours
RUN = "run.json"
FILES = (RUN, "before.json", "before.safetensors", "summary.json", "metrics.jsonl", "report.html", "wandb-id")
ADAPTER = "adapter"  # of a tuned model, as other programs load it
FOLDERS = ("checkpoints", "samples", ADAPTER, "tensorboard")
CHECKPOINT = re.compile(r"round-(\d{6,18})")
_UNFINISHED = re.compile(r"\.tmp-(old-)?round-\d{6,18}")
PART = re.compile(
    r"(policy|ema|training|process-\d{1,6})\.(safetensors|json)|(policy|ema|training)-\d{1,6}\.safetensors"
    r"|MANIFEST\.json"
)
_EVENTS = re.compile(r"events\.out\.tfevents\.[\w.-]+")
_BESIDE = re.compile(r"\.[\w-]+\.[0-9a-f]{8}\.part(\.\w+)?")  # what `beside` names


class Contents(TypedDict):
    """`contents.json`."""

    written_by: str
    files: list[str]


class _Record(TypedDict):
    versions: NotRequired[dict[str, Any]]


def beside(path: Path) -> Path:
    """A new name in the folder of a path, by which an interrupted write is known."""
    return path.with_name(f".{path.stem.replace('.', '-')}.{secrets.token_hex(4)}.part{path.suffix}")


def check_inside(folder: Path) -> None:
    """Refuses a run folder of which a part is a link to elsewhere, a pipe or a device, or of another kind.

    Raises:
        UnreadableError: In a sentence that names the first such part.
    """
    for name in (*FILES, *FOLDERS):
        if (mode := _mode(folder / name)) is None:
            continue
        wanted = stat.S_ISDIR if name in FOLDERS else stat.S_ISREG
        if not wanted(mode):
            raise _strange(folder / name, mode)
    for name in FOLDERS:
        if (folder / name).is_dir():
            _check_below(folder / name)


def _check_below(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        mode = _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            _check_below(path)
        elif mode is not None and not stat.S_ISREG(mode):
            raise _strange(path, mode)


def _mode(path: Path) -> int | None:
    """The mode of what stands at a path, no link followed; None if nothing does."""
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _strange(path: Path, mode: int) -> UnreadableError:
    return UnreadableError(
        f"{path} is {kind_of(mode)}, which no run leaves there, so that nothing was read, written or deleted;"
        " remove it, or name another folder"
    )


def check_run(folder: Path) -> None:
    """Makes sure that a folder holds a run of ours, before anything of it is deleted or replaced."""
    if folder.is_symlink():
        raise UnreadableError(f"{folder} is a link to elsewhere, so nothing is deleted; name another folder")
    check_inside(folder)
    if "difftilt" not in read_json(folder / RUN, _Record).get("versions", {}):
        raise UnreadableError(f"{folder / RUN} was not written by difftilt, so nothing is deleted")


def run_files(folder: Path) -> list[str]:
    """What difftilt wrote into a run folder, as paths within it; `run.json` comes last."""
    found = [name for name in FILES[::-1] if _is_file(folder / name)]
    checkpoints = folder / "checkpoints"
    for place in checkpoints.iterdir() if checkpoints.is_dir() else ():
        if CHECKPOINT.fullmatch(place.name) or _UNFINISHED.fullmatch(place.name):
            found += [f"checkpoints/{place.name}/{file.name}" for file in place.iterdir() if _is_part(file)]
    for listed in ("samples", ADAPTER):
        if own := own_files(folder / listed):
            found += [f"{listed}/{name}" for name in (*own, CONTENTS)]
    events = folder / "tensorboard"
    for file in events.iterdir() if events.is_dir() else ():
        if _EVENTS.fullmatch(file.name) and _is_file(file):
            found.append(f"tensorboard/{file.name}")
    return sorted(found, key=lambda name: (name == RUN, name))


def is_run_file(name: str) -> bool:
    """Whether a path within a run folder can be that of a file of ours."""
    first, *rest = name.split("/")
    if not rest:
        return first in FILES
    if first == "checkpoints" and len(rest) == 2:
        known = CHECKPOINT.fullmatch(rest[0]) or _UNFINISHED.fullmatch(rest[0])
        return bool(known and PART.fullmatch(rest[1]))
    if first == "tensorboard":
        return len(rest) == 1 and bool(_EVENTS.fullmatch(rest[0]))
    return first in ("samples", ADAPTER) and len(rest) == 1 and _is_name(rest[0])


def delete(folder: Path, names: Sequence[str]) -> None:
    """Deletes files by their paths within a folder, and the folders within it that are empty then."""
    for name in names:
        (folder / name).unlink(missing_ok=True)
    within = {parent for name in names for parent in Path(name).parents if parent != Path()}
    for parent in sorted(within, reverse=True):  # what lies in a folder before the folder itself
        _remove_empty(folder / parent)


def discard(checkpoint: Path) -> bool:
    """Deletes a checkpoint, finished or not; one into which somebody put a file of theirs stays as it is.

    Returns:
        Whether it is gone.
    """
    if not checkpoint.is_dir() or checkpoint.is_symlink():
        return False
    files = list(checkpoint.iterdir())
    if not all(_is_part(file) for file in files):
        return False
    if CHECKPOINT.fullmatch(checkpoint.name):  # out of sight first: a kill leaves no half of a checkpoint
        checkpoint = checkpoint.rename(checkpoint.with_name(f".tmp-old-{checkpoint.name}"))
    for name in (file.name for file in files):
        (checkpoint / name).unlink()
    checkpoint.rmdir()
    return True


def sweep(folder: Path) -> None:
    """Removes what interrupted writes left in a run folder."""
    checkpoints = folder / "checkpoints"
    for place in checkpoints.glob(".tmp-*") if checkpoints.is_dir() else ():
        if _UNFINISHED.fullmatch(place.name):
            discard(place)
    for place in (folder, folder / "samples", folder / ADAPTER):
        for path in place.glob(".*.part*") if place.is_dir() else ():
            if not _BESIDE.fullmatch(path.name):
                continue
            if _is_file(path):
                path.unlink()
            elif path.is_dir() and not path.is_symlink():  # of `adding`
                delete(place, [f"{path.name}/{file.name}" for file in path.iterdir() if _is_file(file)])
                _remove_empty(path)


def own_files(folder: Path) -> set[str]:
    """The names of the files in a folder that difftilt wrote, by its `contents.json`."""
    if not _is_file(folder / CONTENTS):
        return set()
    try:
        found = read_json(folder / CONTENTS, Contents)
    except UnreadableError:
        return set()
    names = found["files"] if found["written_by"] == "difftilt" else []
    return {name for name in names if _is_name(name) and _is_file(folder / name)}


def write_contents(folder: Path, names: Sequence[str]) -> None:
    """Says which files of a folder are ours."""
    new = beside(folder / CONTENTS)
    new.write_text(json.dumps({"written_by": "difftilt", "files": sorted(names)}, indent=1) + "\n")
    new.replace(folder / CONTENTS)


def contents(folder: Path) -> set[str]:
    """The names of what lies in a folder, but for the lock and what interrupted writes left."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not _BESIDE.fullmatch(path.name)}


def check_free(folder: Path, *stems: str) -> None:
    """Refuses to replace files of the user's: those whose names begin with a stem and a dot.

    Raises:
        UnreadableError: Before anything is computed, in a sentence that names the first one.
    """
    if (mode := _mode(folder)) is not None and not folder.is_dir():
        raise UnreadableError(f"{folder} is {kind_of(mode)}, and no folder; name another folder")
    if mode is None:
        return
    own = own_files(folder)
    for path in sorted(folder.iterdir()):
        if path.name.partition(".")[0] in stems and path.name not in own:
            raise UnreadableError(
                f"{path} was not written by difftilt, and is not replaced; move it, or name another folder"
            )


def check_no_strangers(folder: Path) -> None:
    """Refuses a run folder in which a file of the user's lies where a checkpoint will be.

    Raises:
        UnreadableError: In a sentence that names the first one.
    """
    checkpoints = folder / "checkpoints"
    for place in sorted(checkpoints.iterdir()) if checkpoints.is_dir() else ():
        known = CHECKPOINT.fullmatch(place.name) or _UNFINISHED.fullmatch(place.name)
        for path in sorted(place.iterdir()) if known and place.is_dir() else ():
            if not _is_part(path):
                raise UnreadableError(f"{path} lies where a checkpoint will be, so move it elsewhere first")


@contextmanager
def adding(folder: Path) -> Iterator[Path]:
    """A folder to write files into, which go to `folder` at the end; after an error they are gone.

    Raises:
        UnreadableError: If a file of that name is there already and is not ours.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = beside(folder / "new")
    new.mkdir()
    try:
        yield new
        names = sorted(path.name for path in new.iterdir())
        own = own_files(folder)
        for name in names:
            if not _is_file(new / name):
                raise UnreadableError(f"{folder / name} would be a folder, but samples are written as files")
            if _mode(folder / name) is not None and name not in own:
                raise UnreadableError(
                    f"{folder / name} was not written by difftilt, and is not replaced; move it, or name"
                    " another folder"
                )
        write_contents(folder, sorted({*own, *names}))  # before the files, lest a kill leave strangers
        for name in names:
            (new / name).replace(folder / name)
    finally:
        shutil.rmtree(new)


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()


def _is_name(name: str) -> bool:
    """Whether a text is the name of a file, and no path to elsewhere."""
    return name not in ("", ".", "..", CONTENTS) and "\0" not in name and Path(name).name == name


def _is_file(path: Path) -> bool:
    mode = _mode(path)
    return mode is not None and stat.S_ISREG(mode)


def _is_part(file: Path) -> bool:
    return bool(PART.fullmatch(file.name)) and _is_file(file)
