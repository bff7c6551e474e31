"""Samples in shards: any worker draws any shard, to the same bytes, and a dead one loses nothing."""

import csv
import hashlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from commands import Command

from difftilt.cli.main import main
from difftilt.experiment import fleet

SHARDS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fleet") / "run"
    small = ["--steps", "2", "--rounds", "1", "--batch", "16", "--evaluate", "8"]
    main(["finetune", "digits", *small, "--reward", "ink", "--out", str(folder)])
    return folder


def words(run: Path, out: Path, *more: str) -> list[str]:
    return ["sample", str(run), "--count", "50", "--shards", str(SHARDS), "--out", str(out), *more]


def digests(out: Path) -> dict[str, str]:
    """The SHA-256 of the files of all shards, and of the merged table and numbers."""
    files = [*out.glob("*-shards/shard-*/*"), *out.glob("*.csv"), *out.glob("*.json")]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_four_workers_of_whom_one_is_killed_leave_what_one_leaves(run, tmp_path):
    main(words(run, tmp_path / "alone"))
    together = tmp_path / "together"

    def dies():
        """Leaves half a shard behind."""
        keep = fleet.keep

        def half(*args, **settings):
            keep(*args, **settings)
            os.kill(os.getpid(), signal.SIGKILL)

        fleet.keep = half

    folders = [tmp_path / f"worker-{k}" for k in range(4)]
    for folder in folders:
        folder.mkdir()
    first = Command(words(run, together), folders[0], dies)
    assert first.wait().code == -signal.SIGKILL
    left = list(together.glob("*-shards/claim-*/.new.*/samples.csv"))
    assert len(left) == 1 and not list(together.glob("*-shards/shard-*"))
    workers = [Command(words(run, together), folder) for folder in folders[1:]]
    time.sleep(0.3)
    workers.append(Command(words(run, together), folders[0]))
    ended = [worker.wait() for worker in workers]
    assert [end.code for end in ended] == [0] * 4, ended
    assert not list(together.rglob(".new.*"))
    assert digests(together) == digests(tmp_path / "alone")
    assert len(digests(together)) == SHARDS * 5 + 3

    rows = list(csv.DictReader((together / "sample-seed1.csv").open()))
    seen = json.loads((together / "sample-seed1.json").read_text())
    assert len(rows) == 50 == seen["reward_calls"] == seen["samples"]
    assert sum(float(row["reward"]) for row in rows) / 50 == pytest.approx(seen["reward"])
    assert len({row["reward"] for row in rows}) == 50  # no two shards have the same seed


def test_a_lost_shard_is_drawn_again_to_the_same_bytes(run, tmp_path, capsys):
    main(words(run, tmp_path))
    whole = digests(tmp_path)
    folder = next(tmp_path.glob("*-shards"))
    for number in (2, 5):
        shutil.rmtree(folder / f"shard-{number:05d}")
    main(words(run, tmp_path, "--shard", "5"))
    assert "others are missing yet" in capsys.readouterr().out
    assert not (folder / "shard-00002").exists()
    main(words(run, tmp_path, "--shard", "2"))
    assert digests(tmp_path) == whole


@pytest.mark.parametrize("name", ["numbers.safetensors", "shard.json"])
def test_a_damaged_shard_is_refused_by_name(name, run, tmp_path, capsys):
    main(words(run, tmp_path))
    path = next(tmp_path.glob(f"*-shards/shard-00003/{name}"))
    path.write_bytes(b"{}")
    capsys.readouterr()
    said = refused(words(run, tmp_path), capsys)
    assert str(path) in said and said.count("difftilt: ") == 1 and "Traceback" not in said


def refused(line: list[str], capsys) -> str:
    with pytest.raises(SystemExit):
        main(line)
    return capsys.readouterr().err


def test_what_makes_no_shards_is_refused(run, tmp_path, capsys):
    assert "there are shards 0 to 7, but got --shard 8" in refused(
        words(run, tmp_path, "--shard", "8"), capsys
    )
    few = ["sample", str(run), "--count", "5", "--shards", "3", "--out", str(tmp_path)]
    assert "two samples or more, but got 5 samples in 3 shards" in refused(few, capsys)
    assert "neither goes with a sampler" in refused([*few, "sampler:smc"], capsys)
    assert "neither goes with" in refused(["sample", str(run), "--shard", "1"], capsys)


def test_shards_of_something_else_are_not_mixed_with_these(run, tmp_path, capsys):
    main(words(run, tmp_path))
    more = ["sample", str(run), "--count", "60", "--shards", str(SHARDS), "--out", str(tmp_path)]
    assert "holds shards of samples with other count than asked for" in refused(more, capsys)
    other = tmp_path / "run"
    shutil.copytree(run, other)
    tuned = ["finetune", "digits", "--steps", "2", "--rounds", "2", "--batch", "16", "--evaluate", "8"]
    main([*tuned, "--reward", "ink", "--out", str(other), "--overwrite"])
    assert "other" in refused(words(other, tmp_path), capsys)
