"""Shards that are drawn by workers which the command itself starts, here or on nodes of Ray."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ray_nodes import added
from test_fleet import digests

from difftilt.cli.main import main
from difftilt.experiment import fleet
from difftilt.rewards.worker_task import LOSSES

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="an extra")
SHARDS = 6
OWN = """
import os, pathlib, time

HERE = pathlib.Path(__file__).parent
print("loaded")

def score(sample, cond):
    (HERE / f"began-{os.getpid()}").touch()
    while (HERE / "wait").exists():
        time.sleep(0.01)
    return sample.mean((1, 2, 3))
"""


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder with a reward that says who asks it, and waits as long as a file is there."""
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def line(own: Path, out: str, *more: str) -> list[str]:
    words = ["sample", "digits", "--reward", f"{own}/own.py:score", "--count", "20", "--out", str(own / out)]
    return [*words, "--shards", str(SHARDS), *more]


def workers(own: Path) -> set[int]:
    """The processes that have asked the reward."""
    return {int(path.name.partition("-")[2]) for path in own.glob("began-*")}


def when(own: Path, count: int, what: Callable[[], object]) -> threading.Thread:
    """Does something once so many more workers are in the midst of a shard, and then lets them go on."""
    before = workers(own)
    (own / "wait").touch()

    def wait() -> None:
        while len(workers(own) - before) < count:
            time.sleep(0.01)
        what()
        (own / "wait").unlink()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_workers_that_are_interrupted_and_killed_leave_what_one_process_leaves(own):
    main(line(own, "alone"))
    words, before = line(own, "together", "--workers", "2"), workers(own)
    started, pipe = [sys.executable, "-m", "difftilt.cli", *words], subprocess.PIPE
    with subprocess.Popen(started, stdout=pipe, stderr=pipe, text=True) as command:

        def interrupt() -> None:
            command.send_signal(signal.SIGINT)
            command.wait(30)

        when(own, 2, interrupt).join()
        out, said = command.communicate()
    assert command.returncode == 130 and not list(own.glob("together/*/shard-*"))
    assert out == "loaded\n", "what workers print is no part of what the command says"
    sentence = "got SIGINT and stopped before the end; what is done is kept, go on with the same line"
    assert said == f"loaded\nloaded\ndifftilt: {sentence}\n"
    interrupted = workers(own) - before
    assert not any(lives(process) for process in interrupted)

    victim = when(own, 2, lambda: os.kill(min(workers(own) - before - interrupted), signal.SIGKILL))
    main(words)
    victim.join()
    assert len(workers(own) - before - interrupted) == 3  # and the one in the place of the killed one
    assert digests(own / "together") == digests(own / "alone")
    assert len(digests(own / "alone")) == SHARDS * 5 + 3 and not list(own.rglob(".new.*"))


@needs_ray
def test_workers_of_ray_leave_what_one_process_leaves(cluster, own):
    main(line(own, "alone"))
    main(line(own, "together", "--workers", "ray://auto", "--resources", "CPU=2"))
    assert digests(own / "together") == digests(own / "alone")


@needs_ray
@pytest.mark.slow
def test_a_node_that_is_lost_has_its_shards_drawn_elsewhere(cluster, own):
    main(line(own, "alone"))
    node = added(cluster, num_cpus=2)
    killer = when(own, 4, node.kill_raylet)
    main(line(own, "together", "--workers", "ray://auto"))
    killer.join()
    assert digests(own / "together") == digests(own / "alone")


class Scripted:
    """Workers that say what they are to."""

    def __init__(self, *said: list[Any]):
        self.said, self.sent, self.closed = list(said), list[int](), False

    def send(self, task: int, content: bytes, limit: float) -> None:
        self.sent.append(task)

    def receive(self, seconds: float) -> list[Any]:
        return [self.said.pop(0)]

    def close(self) -> None:
        self.closed = True


def manifest(count: int) -> Any:
    return {"about": {}, "shards": [{"first": k, "count": 1, "seed": 0} for k in range(count)]}


def test_what_a_worker_cannot_is_told_in_its_words_and_ends_the_others(tmp_path):
    cannot = Scripted([0, "began"], [0, "over", "the reward returned nan"])
    with pytest.raises(ValueError, match=r"^the reward returned nan$"):
        fleet.deal(lambda: cannot, tmp_path, manifest(2))  # pyright: ignore[reportArgumentType]
    assert cannot.closed and cannot.sent == [0, 1]


def test_a_shard_with_which_workers_end_again_and_again_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "PATIENCE", 0.0)
    ends = Scripted(*[[1, "lost"]] * LOSSES)
    with pytest.raises(ValueError, match=f"{LOSSES} workers ended while they drew shard 1 of"):
        fleet.deal(lambda: ends, tmp_path, manifest(2))  # pyright: ignore[reportArgumentType]
    assert ends.closed and ends.sent == [0, *[1] * LOSSES]


def test_a_shard_at_which_somebody_else_is_waits_and_one_that_is_there_is_not_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "PATIENCE", 0.0)
    fleet.shard_at(tmp_path, 0).mkdir(parents=True)
    busy = Scripted([1, "over", None], [1, "over", None])
    receive = busy.receive

    def last(seconds: float) -> list[Any]:
        if len(busy.said) == 1:
            fleet.shard_at(tmp_path, 1).mkdir()
        return receive(seconds)

    monkeypatch.setattr(busy, "receive", last)
    fleet.deal(lambda: busy, tmp_path, manifest(2))  # pyright: ignore[reportArgumentType]
    assert busy.sent == [1, 1]
    fleet.deal(lambda: pytest.fail("nothing is missing"), tmp_path, manifest(2))


def test_workers_that_draw_no_shards_are_refused(tmp_path, capsys):
    def refused(*more: str) -> str:
        with pytest.raises(SystemExit):
            main(["sample", "digits", "--count", "8", "--out", str(tmp_path), *more])
        return capsys.readouterr().err

    assert "--workers need --shards" in refused("--workers", "2")
    assert "leave out --shard, or --workers" in refused("--shards", "2", "--shard", "1", "--workers", "2")
    assert "workers must be a number of processes" in refused("--shards", "2", "--workers", "x")
    assert "workers must be >= 1" in refused("--shards", "2", "--workers", "0")
    said = refused("--shards", "2", "--workers", "2", "--resources", "CPU=2")
    assert "got resources CPU=2, but 2 workers" in said and "give --workers ray://auto" in said
    assert not list(tmp_path.iterdir())
