"""--overwrite deletes what difftilt wrote, and nothing else."""

import json
from pathlib import Path

import pytest

from difftilt.cli.main import main

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
