"""TensorBoard and Weights & Biases: told every step once over all lives, and never able to stop a run."""

import json
import sys
import types
import warnings
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_run import Job, remains

from difftilt.training.trackers import Trackers

LOG = "metrics.jsonl"


def shown(folder) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("reward")]


def logged(folder) -> list[tuple[int, Any]]:
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(row["step"], pytest.approx(row["reward"], rel=1e-6)) for row in rows]


class WandB:
    """Stands in for wandb's client: keeps what it is told."""

    def __init__(self):
        self.begun: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended = 0

    def init(self, **settings: Any) -> "WandB":
        self.begun.append(settings)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.ended += 1


@pytest.fixture
def wandb(monkeypatch) -> WandB:
    client = WandB()
    module = types.ModuleType("wandb")
    module.__spec__ = types.SimpleNamespace(name="wandb")  # type: ignore[assignment]
    module.init = client.init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return client


def test_no_tracker_is_told_unless_it_is_asked_for(ram):
    Job().train(ram, 1)
    assert {path.name for path in ram.iterdir()} == {LOG, "checkpoints"}


@pytest.mark.parametrize("killed", [1, 2, 3])
def test_tensorboard_shows_every_step_of_all_lives_once(ram, killed):
    """The reward fails in round 3, behind the last checkpoint: these steps are told twice."""
    job, tracked = Job(), {"log_to": ("tensorboard",), "save_every": killed}
    fine = job.objective.reward.reward

    class Killed(KeyboardInterrupt):
        pass

    def reward(x, cond):
        if job.objective.reward.round == 3:
            raise Killed
        return fine(x, cond)

    job.objective.reward.reward = reward
    with pytest.raises(Killed):
        job.train(ram, 5, **tracked)
    assert [step for step, _ in shown(ram)] == list(range(1, 7))
    Job().train(ram, 5, **tracked)
    assert shown(ram) == logged(ram)
    assert len(shown(ram)) == 10


def test_all_lives_are_one_run_of_wandb(ram, wandb):
    for rounds in (1, 3):
        Job().train(ram, rounds, log_to=("wandb",))
    first, second = wandb.begun
    assert first["id"] == second["id"] and first["resume"] == second["resume"] == "allow"
    assert first["project"] == "difftilt" and first["name"] == ram.name and first["config"]["rounds"] == 1
    assert [(step, values["reward"]) for step, values in wandb.rows] == logged(ram)
    assert wandb.ended == 2


@pytest.mark.parametrize("method", ["__init__", "add_scalar", "close"])
def test_a_failing_tracker_does_not_stop_training(ram, monkeypatch, wandb, method):
    def fail(*args, **kwargs):
        raise OSError("no space")

    Job().train(ram / "fine", 2)
    monkeypatch.setattr(f"torch.utils.tensorboard.SummaryWriter.{method}", fail)
    with pytest.warns(UserWarning, match="training goes on") as caught:
        Job().train(ram / "failing", 2, log_to=("tensorboard", "wandb"))
    assert len(caught) == 1
    assert (ram / "failing" / LOG).read_bytes() == (ram / "fine" / LOG).read_bytes()
    assert [step for step, _ in wandb.rows] == [1, 2, 3, 4], "the other tracker must be told all the same"


def test_trackers_leave_the_run_as_it_is(ram, wandb):
    Job().train(ram / "quiet", 2)
    Job().train(ram / "told", 2, log_to=("tensorboard", "wandb"))
    assert remains(ram / "quiet") == remains(ram / "told")


def test_a_fine_tracker_is_silent(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trackers = Trackers(["tensorboard"], tmp_path)
        trackers.write(1, {"loss": 1.0})
        trackers.close()
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_missing_package_is_refused_before_anything_is_done(ram, monkeypatch):
    monkeypatch.setattr("difftilt.training.trackers.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"but got 'wandb', .* pip install 'difftilt\[wandb\]'"):
        Job().train(ram / "run", 1, log_to=("wandb",))
    assert not (ram / "run").exists()


def test_trackers_that_the_caller_started_are_told_and_stay_open(ram):
    class Mine(GeneralTracker):
        name = "mine"
        requires_logging_directory = False

        def __init__(self):
            super().__init__(_blank=True)
            self.steps, self.open = [], True

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **options):
            self.steps.append(step)

        def finish(self):
            self.open = False

    mine = Mine()
    accelerator = Accelerator(cpu=True, log_with=mine)
    accelerator.init_trackers("mine")
    Job().train(ram, 2, accelerator=accelerator)
    assert mine.steps == [1, 2, 3, 4] and mine.open
