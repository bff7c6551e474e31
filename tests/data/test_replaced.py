"""A kill at any file operation loses neither the earlier run nor, once it has a checkpoint, the new one."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from difftilt.data.owned import run_files
from difftilt.data.read import UnreadableError
from difftilt.data.replaced import OLD, let_go, put_back, set_aside, settle, waits

OPERATIONS = ("rename", "replace", "mkdir", "unlink", "rmdir")
OLD_RUN = {
    "run.json": "{}",
    "before.json": "old",
    "metrics.jsonl": "old",
    "checkpoints/round-000001/MANIFEST.json": "old",
    "checkpoints/round-000001/policy.safetensors": "old",
    "samples/after.csv": "old",
    "samples/contents.json": '{"written_by": "difftilt", "files": ["after.csv"]}',
    "tensorboard/events.out.tfevents.1": "old",
}
THEIRS = {"notes.txt": "mine", "samples/figure.png": "mine", "checkpoints/round-000001/mine.txt": "mine"}
NEW_RUN = {"run.json": "{}", "before.json": "new", "checkpoints/round-000000/MANIFEST.json": "new"}
CHECKPOINT = {"checkpoints/round-000001/MANIFEST.json": "new"}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def operations(act: Callable[[], object]) -> int:
    """How many file operations something takes; each counts before and after it."""
    return _hooked(act, 0)


def killed(act: Callable[[], object], number: int) -> None:
    """Does something in a process of its own, which is killed at the n-th file operation."""
    child = os.fork()
    if child == 0:
        try:
            _hooked(act, number)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def _hooked(act: Callable[[], object], number: int) -> int:
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **options: object) -> object:
            count()
            result = function(*args, **options)
            count()
            return result

        return run

    real = {name: getattr(os, name) for name in OPERATIONS}
    for name, function in real.items():
        setattr(os, name, around(function))
    try:
        act()
    finally:
        for name, function in real.items():
            setattr(os, name, function)
    return seen


def test_a_kill_while_the_earlier_run_makes_way_loses_nothing(tmp_path: Path):
    fill(tmp_path / "count", OLD_RUN | THEIRS)
    total = operations(lambda: set_aside(tmp_path / "count"))
    assert total > 2 * len(OLD_RUN)
    assert files(tmp_path / "count").keys() >= THEIRS.keys() and waits(tmp_path / "count")
    assert run_files(tmp_path / "count") == []
    for number in range(1, total + 1):
        folder = tmp_path / str(number)
        fill(folder, OLD_RUN | THEIRS)
        killed(lambda folder=folder: set_aside(folder), number)
        settle(folder)
        assert files(folder) == OLD_RUN | THEIRS
        assert not (folder / OLD).exists()


def test_a_kill_while_the_earlier_run_comes_back_loses_nothing(tmp_path: Path):
    def replaced(folder: Path) -> Path:
        fill(folder, OLD_RUN | THEIRS)
        set_aside(folder)
        fill(folder, NEW_RUN)
        return folder

    count = replaced(tmp_path / "count")
    total = operations(lambda: put_back(count))
    assert files(count) == OLD_RUN | THEIRS and total > 2 * len(OLD_RUN)
    for number in range(1, total + 1):
        folder = replaced(tmp_path / str(number))
        killed(lambda folder=folder: put_back(folder), number)
        settle(folder)
        assert files(folder) == OLD_RUN | THEIRS


def test_a_kill_while_the_earlier_run_is_let_go_leaves_the_new_one(tmp_path: Path):
    def begun(folder: Path) -> Path:
        fill(folder, OLD_RUN | THEIRS)
        set_aside(folder)
        fill(folder, NEW_RUN | CHECKPOINT)
        return folder

    count = begun(tmp_path / "count")
    total = operations(lambda: let_go(count))
    for number in range(1, total + 1):
        folder = begun(tmp_path / str(number))
        killed(lambda folder=folder: let_go(folder), number)
        assert not settle(folder)
        assert files(folder) == NEW_RUN | CHECKPOINT | THEIRS


@pytest.mark.parametrize("name", ["../outside.txt", "notes.txt", "/etc/passwd", "samples/../notes.txt"])
def test_a_list_that_somebody_else_made_moves_nothing(tmp_path: Path, name: str):
    folder = tmp_path / "run"
    fill(
        folder, OLD_RUN | THEIRS | {f"{OLD}/files.json": f'{{"files": ["{name}"]}}', f"{OLD}/notes.txt": "x"}
    )
    before = files(tmp_path)
    with pytest.raises(UnreadableError, match="which no run leaves, so nothing was moved"):
        settle(folder)
    assert files(tmp_path) == before
