"""Files and folders that a reader sees whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from difftilt.data.owned import CONTENTS, beside, contents, own_files, write_contents


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes at the end; after an error it is gone instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = beside(path)
    # made here, and nowhere else: a link that somebody left under this name would be followed
    os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield new
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path`; after an error it is gone and all is as before.

    Raises:
        ValueError: Before anything is computed, if `path` holds something that difftilt did not put there.
    """
    check_own(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as around:
        new = Path(around) / "new"
        new.mkdir()
        yield new
        write_contents(new, [file.name for file in new.iterdir()])
        check_own(path)
        if path.exists():
            path.rename(Path(around) / "old")
        new.rename(path)


def check_own(path: Path) -> None:
    """Refuses a folder that holds more than what difftilt left there.

    Raises:
        ValueError: Which says what it holds.
    """
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise ValueError(f"{path} is no folder, and is not replaced; name another folder")
    strange = sorted(contents(path) - own_files(path) - {CONTENTS})
    if strange:
        raise ValueError(
            f"{path} holds {strange[0]}{f' and {len(strange) - 1} more files' * (len(strange) > 1)} that"
            " difftilt did not write, and is not replaced; name another folder, or an empty one"
        )
