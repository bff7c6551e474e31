"""Rewards that cost money, by command: a ledger, several rewards, workers, a budget that can be raised."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from difftilt.cli.main import main

REWARD = """
from pathlib import Path

def pay(count):
    with (Path(__file__).parent / "paid").open("a") as file:
        file.write("x" * count)

def dark(images, c):
    pay(len(images))
    return images.flatten(1).mean(1)

def left(images):
    return images[..., :4].flatten(1).mean(1)

def fussy(images):
    return [None if image.mean() > 0.31 else float(image.mean()) for image in images]
"""
SMALL = ["--steps", "2", "--rounds", "4", "--batch", "16", "--evaluate", "16"]


@pytest.fixture
def words(tmp_path) -> list[str]:
    (tmp_path / "mine.py").write_text(REWARD)
    return ["finetune", "digits", *SMALL, "--out", str(tmp_path / "run")]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def paid(tmp_path: Path) -> int:
    return len((tmp_path / "paid").read_text())


def failing(line: list[str], capsys: Any) -> str:
    with pytest.raises(SystemExit) as ended:
        main(line)
    assert ended.value.code in (1, 2)
    said = capsys.readouterr().err.strip()
    assert "Traceback" not in said
    return said.splitlines()[-1]


def test_a_second_run_is_paid_for_by_the_first(tmp_path, words, capsys):
    mine, ledger = f"{tmp_path}/mine.py:dark", str(tmp_path / "answers.db")
    main([*words, "--reward", mine, "--ledger", ledger, "--reward-workers", "2"])
    assert summary(tmp_path / "run")["reward_calls"] == paid(tmp_path) == 2 * 16 + 4 * 16
    main([*words[:-1], str(tmp_path / "again"), "--reward", mine, "--ledger", ledger])
    assert paid(tmp_path) == 96
    for name in ("reward", "kl_nats", "reward_calls"):
        assert summary(tmp_path / "again")[name] == summary(tmp_path / "run")[name]
    main(["ledger", "export", ledger, "--out", str(tmp_path / "answers.csv")])
    main(["ledger", "import", str(tmp_path / "other.db"), str(tmp_path / "answers.csv")])
    capsys.readouterr()
    main(["ledger", "stats", str(tmp_path / "other.db")])
    said = capsys.readouterr().out
    assert " 96 " in said and "mine.py:dark, version " in said
    rows = list(csv.reader((tmp_path / "answers.csv").open()))
    (tmp_path / "answers.csv").write_text("\n".join(",".join(row).replace(",0.", ",x0.") for row in rows))
    line = ["ledger", "import", str(tmp_path / "third.db"), str(tmp_path / "answers.csv")]
    assert "row 2 has the number 'x0." in failing(line, capsys) and not (tmp_path / "third.db").exists()


def test_a_foreign_run_opens_no_ledger(tmp_path, words, capsys):
    ledger = tmp_path / "answers.db"
    main([*words, "--reward", "ink", "--ledger", str(ledger)])
    main(["sample", str(tmp_path / "run"), "--count", "4"])
    run, victim = tmp_path / "run" / "run.json", tmp_path / "victim.db"
    run.write_text(run.read_text().replace(str(ledger), str(victim)))
    for command in ("sample", "resume"):
        assert "so that file is not opened" in failing([command, str(tmp_path / "run")], capsys)
    assert not victim.exists()


def test_several_rewards_are_told_apart_everywhere(tmp_path, words, capsys):
    parts = [f"{tmp_path}/mine.py:dark:2@sigmoid(0.1,0.5)", f"{tmp_path}/mine.py:left", "--alpha", "0.5"]
    main([*words, "--reward", *parts])
    names = {f"{tmp_path}/mine.py:dark", f"{tmp_path}/mine.py:left"}
    found = summary(tmp_path / "run")
    assert found["parts"].keys() == found["before"]["parts"].keys() == names
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(f"part {name}" in row for name in names for row in rows)
    table = (tmp_path / "run" / "samples" / "after.csv").read_text().splitlines()[0]
    assert all(f"part {name}" in table for name in names)
    assert all(f"part {name}" in (tmp_path / "run" / "report.html").read_text() for name in names)
    assert capsys.readouterr().out.count(" part ") >= 2
    main(["sample", str(tmp_path / "run"), "--count", "4"])
    line = [*words, "--overwrite", "--reward", "ink>=0.2 + symmetry"]
    assert "got a gate and unasked None" in failing(line, capsys)
    assert summary(tmp_path / "run") == found, "what was refused has changed the earlier run"


def test_a_budget_ends_a_run_cleanly_and_can_be_raised(tmp_path, words, capsys):
    mine = ["--reward", f"{tmp_path}/mine.py:dark"]
    assert "must be above 32, but got 32" in failing([*words, *mine, "--reward-budget", "32"], capsys)
    main([*words, *mine, "--reward-budget", "70"])
    assert paid(tmp_path) == summary(tmp_path / "run")["reward_calls"] == 64
    assert "training ended early: 48 of at most 54 calls" in capsys.readouterr().out
    assert summary(tmp_path / "run")["rounds"] == 2
    main(["resume", str(tmp_path / "run")])
    assert "is finished: training ended early" in capsys.readouterr().out and paid(tmp_path) == 64
    main(["resume", str(tmp_path / "run"), "--reward-budget", "1000"])
    assert summary(tmp_path / "run")["rounds"] == 4


def test_failed_samples_are_dropped_or_penalised_as_stated(tmp_path, words, capsys):
    mine = ["--reward", f"{tmp_path}/mine.py:fussy"]
    assert "returned None for sample" in failing([*words, *mine], capsys)
    for how, name in ((["drop"], "dropped"), (["penalty", "--penalty", "-2"], "penalised")):
        main([*words, *mine, "--overwrite", "--on-error", *how])
        found = summary(tmp_path / "run")
        assert found[name] > 0 and (found["reward"] < 0) == (name == "penalised")
        assert f"{found[name]} samples had no valid reward and were {name}" in capsys.readouterr().out
    line = [*words, *mine, "--overwrite", "--on-error", "drop", "--max-failures", "0.01"]
    assert "at most a share of 0.01 may fail" in failing(line, capsys)
