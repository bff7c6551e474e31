"""Monitors of a run: told once, on the page, and able to end it so that it can go on."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from difftilt.data.vocabulary import DNA
from difftilt.evaluation.report import write_report
from difftilt.experiment import finetune as module
from difftilt.experiment.finetune import finetune
from difftilt.experiment.job import Job, tune
from difftilt.processes.masked import MaskedPolicy
from difftilt.training.load import load_totals
from difftilt.training.settings import Training

TRAINING = Training(  # strays, as nothing holds it
    rounds=6, batch=32, evaluate=40, learning_rate=3.0, trust_region=0.0, schedule="constant", save_every=4
)


class Table(nn.Module):
    """Logits of two letters, whatever else there is."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2, len(DNA)))

    def forward(self, x, t, cond):
        return self.logits.expand(len(x), -1, -1)


def a_share(x, cond) -> torch.Tensor:
    return (x == 0).float().mean(1)


def job(training: Training) -> Job:
    made = tune(MaskedPolicy(Table(), len(DNA), 2), a_share, alpha=1.0, training=training)
    return dataclasses.replace(made, maker=None)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watching") / "run"
    finetune(job(dataclasses.replace(TRAINING, stop_on=("kl",))), folder, Accelerator(cpu=True))
    return folder


def summary_of(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_a_monitor_ends_the_run_with_its_round_saved(stopped: Path):
    summary = summary_of(stopped)
    assert 3 <= summary["rounds"] < TRAINING.rounds and summary["rounds"] == load_totals(stopped).rounds
    (alarm,) = (alarm for alarm in summary["alarms"] if alarm.startswith("kl"))
    monitor, round = alarm.split(":")[0].split(", round ")
    assert int(round) == summary["rounds"]
    assert f"training ended early: the monitor {monitor} spoke in round {round}" in summary["ended"]
    page = write_report(stopped).read_text()
    assert "What the monitors said while it ran" in page and f"{monitor}, round {round}: " in page


def test_it_can_go_on_and_tells_nothing_twice(stopped: Path, capsys: pytest.CaptureFixture):
    before = summary_of(stopped)
    finetune(job(dataclasses.replace(TRAINING, stop_on=("kl",))), stopped, Accelerator(cpu=True))
    summary, told = summary_of(stopped), capsys.readouterr().err
    first = {alarm.partition(",")[0] for alarm in before["alarms"]}
    assert summary["rounds"] == TRAINING.rounds and summary["alarms"][: len(first)] == before["alarms"]
    assert not any(f"monitor: {name}," in told for name in first)


@pytest.mark.parametrize("stop_on", [(), ("kl",)])
def test_a_run_that_dies_in_its_last_evaluation_ends_as_it_would_have(
    stop_on: tuple[Literal["kl"], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    training = dataclasses.replace(TRAINING, stop_on=stop_on)
    whole = finetune(job(training), tmp_path / "whole", Accelerator(cpu=True))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_ended", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            finetune(job(training), tmp_path / "run", Accelerator(cpu=True))
    again = finetune(job(training), tmp_path / "run", Accelerator(cpu=True))
    assert whole["alarms"] and bool(whole["ended"]) == bool(stop_on)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}


def test_a_run_without_stop_on_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture):
    summary = finetune(job(TRAINING), tmp_path / "run", Accelerator(cpu=True))
    assert summary["rounds"] == TRAINING.rounds and not summary["ended"] and summary["alarms"]
    told = capsys.readouterr().err
    assert all(told.count(f"monitor: {alarm}") == 1 for alarm in summary["alarms"])
