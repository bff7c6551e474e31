"""A checkpoint belongs to its run: what has changed since is named, and accepted only when asked for."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from difftilt.cli.main import main
from difftilt.training.manifest import MANIFEST, describe

SMALL = [
    "--rounds",
    "2",
    "--batch",
    "8",
    "--evaluate",
    "4",
    "--steps",
    "2",
    "--reward",
    "ink",
    "algorithm:ppo",
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which the last round is missing."""
    folder = tmp_path_factory.mktemp("base") / "run"
    main(["finetune", "digits", *SMALL, "--out", str(folder)])
    shutil.rmtree(folder / "checkpoints" / "round-000002")
    (folder / "summary.json").unlink()
    return folder


@pytest.fixture
def run(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "run"))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def error(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 1
    return capsys.readouterr().err.strip().splitlines()[-1]


def rate(record: dict) -> None:
    record["settings"]["training"]["learning_rate"] = 0.25


def alpha(record: dict) -> None:
    record["settings"]["alpha"] = 0.7


def reward(record: dict) -> None:
    record["settings"]["reward"] = "symmetry"


CHANGES = {
    "training.learning_rate": (rate, "0.25"),
    "alpha": (alpha, "0.7"),
    "reward": (reward, "symmetry"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_setting_is_named_and_accepted_only_when_asked_for(name, run, capsys):
    change, now = CHANGES[name]
    edit(run / "run.json", change)
    told = error(["resume", str(run)], capsys)
    assert f"was trained with {name} " in told and now in told and "--accept-changes" in told
    assert "changes" not in json.loads((run / "run.json").read_text())
    before = json.loads((run / "before.json").read_text())
    main(["resume", str(run), "--accept-changes"])
    assert f"goes on after round 1, but {name} was" in capsys.readouterr().err
    record = json.loads((run / "run.json").read_text())
    assert {"round": 1, "what": name, "is": now}.items() <= record["changes"][0].items()
    training = json.loads((run / "checkpoints" / "round-000002" / "training.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    if name == "training.learning_rate":
        assert training["optimizer"]["param_groups"][0]["initial_lr"] == 0.25
        assert training["scheduler"]["base_lrs"][0] == 0.25
        assert summary["before"] == {name: before[name] for name in summary["before"]}
    else:  # the pretrained model is judged anew, by what is asked for now
        assert summary["before"]["objective"] != before["objective"] or name == "alpha"
        assert summary["before"]["alpha"] == summary["alpha"] == (0.7 if name == "alpha" else before["alpha"])
    main(["resume", str(run)])  # accepted once, and for good
    assert len(json.loads((run / "run.json").read_text())["changes"]) == len(record["changes"])


def test_a_changed_file_of_numbers_is_named(run, capsys):
    edit(run / "before.json", lambda content: content.update(reward=5.0))
    assert "was trained with before.json " in error(["resume", str(run)], capsys)


def test_more_rounds_are_no_change(run, capsys):
    edit(run / "run.json", lambda record: record["settings"]["training"].update(rounds=3))
    main(["resume", str(run)])
    assert json.loads((run / "summary.json").read_text())["rounds"] == 3


def test_threads_are_measured_once_and_kept(tmp_path, monkeypatch):
    measured = []

    def found(*_: object) -> int:
        measured.append(torch.get_num_threads())
        return 2

    monkeypatch.setattr("difftilt.experiment.job.quickest", found)
    main(["finetune", "digits", *SMALL, "--out", str(tmp_path / "new")])
    record = json.loads((tmp_path / "new" / "run.json").read_text())
    assert (record["threads"], record["settings"]["training"]["threads"]) == (2, 2)
    main(["resume", str(tmp_path / "new")])
    main(["sample", str(tmp_path / "new"), "--count", "2"])
    assert len(measured) == 1
    assert torch.get_num_threads() == measured[0]
    main(["finetune", "digits", *SMALL, "--threads", "1", "--out", str(tmp_path / "other")])
    assert len(measured) == 1


@pytest.mark.parametrize("what", ["threads", "torch"])
def test_other_versions_and_threads_are_a_warning_that_is_written_down(what, run, capsys, monkeypatch):
    if what == "threads":
        edit(run / "run.json", lambda record: record["settings"]["training"].update(threads=2))
    else:
        now = {**json.loads((run / "run.json").read_text())["versions"], "torch": "99.0"}
        monkeypatch.setattr("difftilt.experiment.identity.versions", lambda: now)
    main(["resume", str(run)])
    name, is_now = ("training.threads", "2") if what == "threads" else ("version of torch", "99.0")
    assert f"{name} was " in capsys.readouterr().err
    (row,) = json.loads((run / "run.json").read_text())["changes"]
    assert (row["what"], row["is"]) == (name, is_now)


def test_the_log_that_a_checkpoint_goes_on_from_is_checked(run, capsys):
    log = run / "metrics.jsonl"
    log.write_text(log.read_text().replace("0", "1", 1))
    assert "metrics.jsonl are not as they were" in error(["resume", str(run)], capsys)
    shutil.copy(log, run / "copy")
    log.unlink()
    log.hardlink_to(run / "copy")
    assert "is a hard link" in error(["resume", str(run)], capsys)


@pytest.mark.parametrize("command", ["resume", "sample"])
def test_weights_that_are_no_numbers_are_named_and_not_blamed_on_the_reward(command, run, capsys):
    place = run / "checkpoints" / "round-000001"
    weights = load_file(place / "policy.safetensors")
    weights[sorted(weights)[0]].view(-1)[0] = float("nan")
    save_file(weights, place / "policy.safetensors")
    about = json.loads((place / MANIFEST).read_text())["run"]
    (place / MANIFEST).unlink()
    (place / MANIFEST).write_bytes(describe(place, 1, about))
    told = error([command, str(run)], capsys)
    assert f"the weights of checkpoint {place} hold NaN" in told and "reward" not in told
