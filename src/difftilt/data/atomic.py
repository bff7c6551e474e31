"""Files and folders that a reader sees whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONTENTS = "contents.json"  # which files of a folder are ours


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes at the end; after an error it is gone instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path`; after an error it is gone and all is as before.

    Raises:
        ValueError: Before anything is computed, if `path` holds something that difftilt did not put there.
    """
    _check_own(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        yield new
        names = sorted(file.name for file in new.iterdir())
        (new / CONTENTS).write_text(json.dumps({"written_by": "difftilt", "files": names}, indent=1) + "\n")
        _check_own(path)
        if path.exists():
            path.rename(Path(beside) / "old")
        new.rename(path)


def _check_own(path: Path) -> None:
    """Refuses a folder that holds more than what difftilt left there."""
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise ValueError(f"{path} is no folder, and is not replaced; name another folder")
    found = {file.name for file in path.iterdir()}
    strange = sorted(found - own_files(path) - {CONTENTS})
    if strange:
        raise ValueError(
            f"{path} holds {strange[0]}{f' and {len(strange) - 1} more files' * (len(strange) > 1)} that"
            " difftilt did not write, and is not replaced; name another folder, or an empty one"
        )


def own_files(folder: Path) -> set[str]:
    """The names of the files in a folder that difftilt wrote."""
    try:
        content = json.loads((folder / CONTENTS).read_text())
        files = content["files"] if content["written_by"] == "difftilt" else []
        return {name for name in files if not (folder / name).is_dir() and not (folder / name).is_symlink()}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
