"""Files and folders that a reader sees whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, whose place it takes at the end; after an error it is gone instead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def draft_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` and of what it held; after an error it is gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as beside:
        new = Path(beside) / "new"
        new.mkdir()
        yield new
        if path.exists():
            path.rename(Path(beside) / "old")
        new.rename(path)
