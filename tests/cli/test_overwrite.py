"""--overwrite deletes what difftilt wrote, and nothing else."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from difftilt.cli.main import main
from difftilt.data.lock import locked

QUICK = ["--rounds", "1", "--batch", "8", "--evaluate", "4", "--steps", "2"]


def finetune(folder: Path, *words: str) -> None:
    main(["finetune", "digits", *QUICK, "algorithm:ppo", "--out", str(folder), *words])


def test_a_run_makes_way_for_another_and_the_users_files_stay(tmp_path, capsys):
    folder = tmp_path / "run"
    finetune(folder)
    first = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    theirs = [folder / "notes.txt", folder / "samples" / "figure.png", folder / "checkpoints" / "readme"]
    for path in theirs:
        path.write_text("mine")
    finetune(folder, "--overwrite", "--seed", "1")
    assert [path.read_text() for path in theirs] == ["mine"] * 3
    left = {str(path.relative_to(folder)) for path in folder.rglob("*")} - {
        str(path.relative_to(folder)) for path in theirs
    }
    tracker = {name for name in first | left if "tfevents" in name}
    assert left - tracker == first - tracker
    assert json.loads((folder / "run.json").read_text())["seed"] == 1


def test_a_folder_that_is_no_run_of_ours_is_left_as_it_is(tmp_path, capsys):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "run.json").write_text('{"name": "my marathon"}')
    with pytest.raises(SystemExit):
        finetune(folder, "--overwrite")
    assert "was not written by difftilt" in capsys.readouterr().err
    assert (folder / "run.json").read_text() == '{"name": "my marathon"}'
    (folder / "run.json").unlink()
    finetune(folder)
    (folder / "samples").rename(elsewhere)
    (folder / "samples").symlink_to(elsewhere)
    with pytest.raises(SystemExit):
        finetune(folder, "--overwrite")
    assert "link to elsewhere" in capsys.readouterr().err
    assert (elsewhere / "after.csv").is_file() and (folder / "run.json").is_file()


def run_in_a_child(words: list[str]) -> int:
    """The exit code of a command in a process of its own; minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            main(words)
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    finetune(folder)
    return folder


@pytest.fixture
def earlier(finished, tmp_path, monkeypatch):
    """A finished run, and a reward that ends the process, or fails, at its n-th call if a file says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("difftilt.experiment.code._found", {})
    (tmp_path / "mine.py").write_text(
        "import os\nfrom pathlib import Path\ncalls = 0\n"
        "def score(samples):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    what, _, number = Path('ends').read_text().partition(' ')\n"
        "    if calls == int(number or 0):\n"
        "        if what == 'kill':\n"
        "            os.kill(os.getpid(), 9)\n"
        "        raise RuntimeError('no more')\n"
        "    return samples.flatten(1).sum(1)\n"
    )
    (tmp_path / "ends").write_text("")
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


NEW = [
    "finetune",
    "digits",
    *QUICK,
    "--reward",
    "mine.py:score",
    "algorithm:ppo",
    "--out",
    "run",
    "--overwrite",
]


@pytest.mark.parametrize("call", [1, 2], ids=["before training", "in the first round"])
def test_a_new_run_that_fails_before_its_first_checkpoint_gives_the_place_back(call, earlier, capfd):
    before = contents(earlier)
    (earlier.parent / "ends").write_text(f"raise {call}")
    assert run_in_a_child(NEW) == 1
    assert "the earlier one is back" in capfd.readouterr().err
    assert contents(earlier) == before


@pytest.mark.parametrize("command", ["report", "sample", "finetune", "finetune --overwrite", "resume"])
def test_a_new_run_that_is_killed_before_its_first_checkpoint_loses_nothing(command, earlier, capfd):
    before = contents(earlier)
    (earlier.parent / "ends").write_text("kill 2")
    assert run_in_a_child(NEW) == -signal.SIGKILL
    assert (earlier / ".old-run" / "run.json").exists()
    (earlier.parent / "ends").write_text("")
    name, *overwrite = command.split()
    words = [*NEW[:-1], *overwrite] if name == "finetune" else [name, "run"]
    code = run_in_a_child(words)
    said = capfd.readouterr().err
    assert (earlier / "notes.txt").read_text() == "mine"
    if name == "resume" or overwrite:
        assert code == 0
        assert json.loads((earlier / "run.json").read_text())["reward"] == "mine.py:score"
        assert not (earlier / ".old-run").exists() and (earlier / "summary.json").exists()
    else:
        assert code == (1 if name == "finetune" else 0)
        assert "the earlier one is back" in said
        left = contents(earlier)
        written = {"report": ["report.html"], "sample": ["samples/contents.json"]}.get(name, [])
        assert [path for path in before if left.get(path) != before[path]] in ([], written)


def test_one_process_at_a_time_works_on_a_folder(earlier, capfd):
    with locked(earlier):
        for words in (NEW, ["resume", "run"]):
            code = os.fork()
            if code == 0:
                os.execv(sys.executable, [sys.executable, "-m", "difftilt.cli", *words])
            assert os.waitstatus_to_exitcode(os.waitpid(code, 0)[1]) == 1
            assert "run is in use by another process of difftilt" in capfd.readouterr().err
        assert run_in_a_child(["report", "run"]) == 0
