"""What is the user's stays, and what leads out of a run folder is refused before anything is written."""

import ast
import os
import socket
from pathlib import Path

import pytest

import difftilt
from difftilt.data.lock import BusyError, locked
from difftilt.data.owned import CONTENTS, adding, check_free, check_inside, discard, own_files, sweep
from difftilt.data.read import UnreadableError

DELETING = {"unlink", "rmdir", "rmtree", "remove", "removedirs"}
OWNERS = {"data/owned.py", "data/atomic.py", "data/lock.py"}  # the last two: of what they have just made
PLACES = (
    *("run.json", "metrics.jsonl", "report.html", "samples", "adapter", "tensorboard", "checkpoints"),
    *("samples/after.csv", "checkpoints/round-000001", "checkpoints/.tmp-x"),
    "checkpoints/round-000001/policy.safetensors",
)


def test_nothing_else_in_the_library_deletes():
    root, found = Path(difftilt.__file__).parent, set()
    for path in root.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        named = {getattr(call.func, "attr", "") for call in calls if _of_files(call)}
        if named & DELETING:
            found.add(str(path.relative_to(root)))
    assert found == OWNERS


def _of_files(call: ast.Call) -> bool:
    """Whether a call may be one of a path: list.remove and its like are called on a name or an attribute."""
    return getattr(call.func, "attr", "") != "remove" or ast.unparse(call.func).startswith("os.")


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "socket"])
def test_what_leads_elsewhere_is_refused(tmp_path: Path, name: str, kind: str):
    folder, outside = tmp_path / "run", tmp_path / "out"
    outside.mkdir()
    path = folder / name
    path.parent.mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            here = os.open(path.parent, os.O_RDONLY)
            made.bind(f"/proc/self/fd/{here}/{path.name}")  # the path itself may be too long for a socket
            os.close(here)
    else:
        path.symlink_to(outside if kind == "link" else outside / "nothing")
    what = "a link to elsewhere" if kind in ("link", "dangling") else f"a {kind}"
    with pytest.raises(UnreadableError, match=f"{name} is {what}, which no run leaves there"):
        check_inside(folder)


def test_files_of_a_run_and_of_its_user_pass(tmp_path: Path):
    for name in ("run.json", "checkpoints/round-000001/policy.safetensors", "samples/mine/picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "mine").symlink_to("/")
    check_inside(tmp_path)


def test_samples_replace_samples_and_nothing_else(tmp_path: Path):
    for text in ("first", "second"):
        with adding(tmp_path) as new:
            (new / "after.csv").write_text(text)
        assert (tmp_path / "after.csv").read_text() == text
        assert {path.name for path in tmp_path.iterdir()} == {"after.csv", CONTENTS}
    (tmp_path / "before.csv").write_text("mine")
    check_free(tmp_path, "after")
    with pytest.raises(
        UnreadableError, match=r"before\.csv was not written by difftilt, and is not replaced"
    ):
        check_free(tmp_path, "before")
    with pytest.raises(UnreadableError, match=r"before\.csv was not written"), adding(tmp_path) as new:
        (new / "before.csv").write_text("theirs")
        (new / "after.csv").write_text("theirs")
    assert (tmp_path / "before.csv").read_text() == "mine"
    assert (tmp_path / "after.csv").read_text() == "second"
    assert own_files(tmp_path) == {"after.csv"}


@pytest.mark.parametrize("name", ["../notes.txt", "..", "", "/etc/passwd", "a\\u0000b", "contents.json"])
def test_a_manifest_names_files_of_its_own_folder_only(tmp_path: Path, name: str):
    (tmp_path / "notes.txt").touch()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONTENTS).write_text(f'{{"written_by": "difftilt", "files": ["{name}"]}}')
    assert own_files(tmp_path / "run") == set()


def test_a_checkpoint_with_a_file_of_the_users_stays(tmp_path: Path):
    for name in ("round-000001", "round-000002", ".tmp-round-000003", ".tmp-mine"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "policy.safetensors").touch()
    (tmp_path / "checkpoints" / "round-000001" / "notes.txt").touch()
    assert not discard(tmp_path / "checkpoints" / "round-000001")
    assert discard(tmp_path / "checkpoints" / "round-000002")
    sweep(tmp_path)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"round-000001", ".tmp-mine"}
    assert len(list((tmp_path / "checkpoints" / "round-000001").iterdir())) == 2


def test_two_processes_do_not_share_a_folder_and_the_dead_hold_nothing(tmp_path: Path):
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os.kill(os.getpid(), 9)
    os.read(ready[0], 1)
    with pytest.raises(BusyError, match="is in use by another process"), locked(tmp_path):
        pytest.fail("two processes at once")
    os.write(done[1], b"x")
    os.waitpid(child, 0)
    with locked(tmp_path), locked(tmp_path):  # within one process it is one lock
        child = os.fork()
        if child == 0:  # which outlives its parent's work, and must not hold it up
            os.read(done[0], 1)
            os._exit(0)
    with locked(tmp_path):
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
    os.write(done[1], b"x")
    os.waitpid(child, 0)
