"""Workers that Ray places: a cluster of two nodes in this machine, of which one is lost."""

import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import added

from difftilt.answers import RewardError
from difftilt.conditions import take, unconditional
from difftilt.rewards.ledger import Ledger
from difftilt.rewards.ray_cluster import AUTO, Placement, placed
from difftilt.rewards.scoring import Scoring, guarded
from difftilt.rewards.workers import Workers
from difftilt.shapes import Cond, Sample

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="an extra")


def faulty(x: Sample, c: Cond) -> Any:
    """Draws a number; one sample in ten raises, hangs or exits, in turn. Each begun is written down."""
    number, folder = int(x[0, 0]), Path(c["folder"][0])
    with (folder / "begun").open("a") as file:
        file.write(f"{number}\n")
    time.sleep(float(x[0, 1]))
    if number % 10 == 3:
        kind = number // 10 % 3
        _ = [lambda: {}["no such pocket"], lambda: time.sleep(100), lambda: os._exit(3)][kind]()
    return [number + torch.rand(()).item()]


REASONS = {
    "raised KeyError ('no such pocket')",
    "took longer than 1 s",
    "ended its process with code 3",
}


def asked(count: int, seconds: float, folder: Path) -> tuple[Sample, Cond]:
    x = torch.stack([torch.arange(float(count)), torch.full((count,), seconds)], 1)
    return x, {"folder": [str(folder)] * count}


def begun(folder: Path) -> Counter[int]:
    return Counter(map(int, (folder / "begun").read_text().split()))


def lost_in_the_midst(cluster: Any, folder: Path, count: int, seconds: float, actor: bool = False) -> None:
    """One of two nodes, of two workers each, is killed when a third of the samples is paid for.

    Args:
        actor: Its actor is killed instead, which Ray starts anew.
    """
    settings = {"on_error": "drop", "reward_timeout": 1.0}
    alone = guarded(faulty, "faulty", Scoring(reward_workers=2, **settings), seed=3)
    expected = alone(*asked(count, 0, folder))
    (folder / "begun").unlink()
    node = added(cluster, num_cpus=2)
    ledger = Ledger(folder / "paid.db")
    settings |= {"ledger": ledger.path, "reward_version": "1"}
    reward = guarded(faulty, "faulty", Scoring(reward_workers=AUTO, **settings), seed=3)
    paid: set[int] = set()

    def kill() -> None:
        here = Ledger(ledger.path)
        while len(paid) < count // 3:
            time.sleep(0.005)
            paid.update(int(row[4]) for row in here.rows())
        if actor:
            os.kill(next(p for p, line in session("RAY_").items() if line.startswith("ray::Node")), 9)
        else:
            node.kill_raylet()

    killer = threading.Thread(target=kill)
    killer.start()
    answers = reward(*asked(count, seconds, folder))
    killer.join()
    torch.testing.assert_close(answers, expected, rtol=0, atol=0, equal_nan=True)  # whoever scored
    good = [k for k in range(count) if k % 10 != 3]
    assert [k for k, number in enumerate(answers.tolist()) if number == number] == good
    assert reward.reasons == alone.reasons and set(reward.reasons.values()) == REASONS
    assert sorted(int(row[4]) for row in ledger.rows()) == good
    twice = {k for k, times in begun(folder).items() if times > 1}
    assert set(begun(folder)) == set(range(count)) and max(begun(folder).values()) <= 2
    assert len(twice) <= 4 and not twice & paid  # what its two workers had been given
    assert count // 3 <= len(paid) < len(good), "the loss came in the midst"
    again = begun(folder)
    rows = torch.tensor(good)
    x, cond = asked(count, seconds, folder)
    assert reward(x[rows], take(cond, rows)).equal(answers[rows]) and begun(folder) == again
    reward.reward.reward.close()  # pyright: ignore
    if actor:
        cluster.remove_node(node)


def test_a_node_that_is_lost_loses_and_doubles_nothing(cluster, tmp_path):
    lost_in_the_midst(cluster, tmp_path, count=120, seconds=0.06)


@pytest.mark.slow
def test_a_thousand_samples_survive_the_loss_of_a_node(cluster, tmp_path):
    lost_in_the_midst(cluster, tmp_path, count=1000, seconds=0.06)


@pytest.mark.slow
def test_an_actor_that_is_killed_is_started_anew(cluster, tmp_path):
    lost_in_the_midst(cluster, tmp_path, count=300, seconds=0.06, actor=True)


def first_free(x: Sample, c: Cond) -> Any:
    """Which of the GPUs, which are none, Ray has given to the worker that is asked."""
    time.sleep(0.3)
    return x[:, 0] + float(os.environ["CUDA_VISIBLE_DEVICES"])


@pytest.mark.slow
def test_workers_go_where_their_resources_are_and_each_has_gpus_of_its_own(cluster):
    node = added(cluster, num_cpus=8, num_gpus=2, resources={"licence": 3})
    x = torch.zeros(8, 1)
    with Workers(first_free, Placement(AUTO, ("GPU=1",)), 60.0) as workers:
        assert set(workers(x, unconditional(8))) == {0, 1}
        with Workers(square, Placement(AUTO, ("GPU=1",)), 60.0) as others:  # the second term of a reward
            assert others(x, unconditional(8)) == [0.0] * 8
    with Workers(square, Placement(AUTO, ("licence=1", "CPU=2")), 60.0) as workers:
        more = torch.arange(40.0)[:, None]  # beyond what three workers are given at once
        workers.prefetch(more[:30], unconditional(30))
        assert workers(more, unconditional(40)) == [float(k * k) for k in range(40)]
        assert workers._pool is not None and workers._pool.count == 3
    cluster.remove_node(node)


def square(x: Sample, c: Cond) -> Any:
    return x[:, 0].square()


class Elsewhere:
    """What can be made in this process alone."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return here, (os.getpid(),)

    def __call__(self, x: Sample, c: Cond) -> Any:
        return x[:, 0]


def here(process: int) -> Elsewhere:
    if process != os.getpid():
        raise LookupError("no such licence")
    return Elsewhere()


def test_what_ray_cannot_do_is_said_in_a_sentence(cluster, monkeypatch):
    def why(reward: Any, *needs: str) -> str:
        said = ""
        try:
            Workers(reward, Placement(AUTO, needs or ("CPU=1",)), 1.0)(torch.ones(1, 1), unconditional(1))
        except RewardError as error:
            said = str(error)
        gc.collect()  # the cluster is left when nothing holds it, as tracebacks do
        return said

    lock = threading.Lock()
    said = why(lambda x, c: lock and x[:, 0])
    assert "'<lambda>' cannot be sent to nodes of Ray: TypeError (cannot pickle" in said
    assert "cannot be made on a node of Ray: LookupError (no such licence); install" in why(Elsewhere())
    assert "no room for a worker of process 0 of 1, which needs licence=2" in why(square, "licence=2")
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "99")  # however many nodes other tests have left
        patch.setenv("WORLD_SIZE", "100")
        said = why(square)
        assert (
            "no room for a worker of process 99 of 100, which needs CPU=1: its nodes have [{'CPU': 2" in said
        )
    with monkeypatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        assert "ray://auto cannot join a cluster of Ray: ConnectionRefusedError" in why(square)
        patch.setitem(sys.modules, "ray", None)
        assert why(square).endswith("not installed; install it with pip install 'difftilt[ray]'")


def test_settings_that_are_none_are_refused():
    assert placed(3, ()) == 3 and placed("ray://4", ()) == Placement("ray://4", ("CPU=1",))
    assert Placement("ray://4", ("GPU=0.25", "my-licence=1")).needs(2) == {"GPU": 0.5, "my-licence": 2}
    for bad in ("ray://0", "ray://", "ray", "ray://host:10001", "2.5"):
        with pytest.raises(ValueError, match=r"reward_workers must be a number of processes, ray://N"):
            Scoring(reward_workers=bad)
    for bad in ("CPU", "CPU=0", "=1", "CPU=-1"):
        with pytest.raises(ValueError, match="reward_resources must be NAME=AMOUNT"):
            Scoring(reward_workers="ray://1", reward_resources=(bad,))
    with pytest.raises(ValueError, match="got reward_resources CPU=2, but 2 reward_workers"):
        Scoring(reward_workers=2, reward_resources=("CPU=2",))


LOCAL = """
import os, pathlib, time, torch
from difftilt.conditions import unconditional
from difftilt.rewards.ray_cluster import Placement
from difftilt.rewards.workers import Workers

def reward(x, c):
    pathlib.Path(os.environ["MARK"], "begun").touch()
    time.sleep(1000)

with Workers(reward, Placement("ray://1"), 1000.0) as workers:
    workers(torch.ones(1, 1), unconditional(1))
"""


def session(text: str) -> dict[int, str]:
    """Processes whose environment holds a text, and their command lines."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if text in (entry / "environ").read_text() and int(entry.name) != os.getpid():
                found[int(entry.name)] = (entry / "cmdline").read_text()
        except OSError:
            continue
    return found


def ours(folder: Path) -> list[str]:
    """What is left of a session but for Ray's agents, which look for their raylet once a minute."""
    return [line for line in session(f"MARK={folder}").values() if "Agent" not in line]


def listening(processes: Any) -> set[str]:
    """The addresses at which processes listen, as /proc writes them."""
    sockets = set()
    for process in processes:
        for link in Path(f"/proc/{process}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                sockets.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    tables = [line.split() for line in lines]
    return {row[1].partition(":")[0] for row in tables if row[3] == "0A" and row[9] in sockets}


@pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")
def test_a_cluster_of_its_own_is_reached_from_this_machine_alone_and_ends_with_its_process(tmp_path):
    place = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {"MARK": str(tmp_path)}
    words = [sys.executable, "-c", LOCAL]
    with subprocess.Popen(words, env=place, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 100
        while not (tmp_path / "begun").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        found = session(f"MARK={tmp_path}")
        (raylet,) = (number for number, line in found.items() if "/raylet\0" in line)
        assert "RAY_AUTH_MODE=token" in Path(f"/proc/{raylet}/environ").read_text()
        assert sum("ray_host" in line for line in found.values()) == 3  # with its keeper and its worker
        assert listening(found) <= {"0100007F", "0000000000000000FFFF00000100007F"} and listening(found)
        process.kill()
        process.wait(10)
    deadline = time.monotonic() + 20
    while (left := ours(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


DRAWS = """
import time, torch

def score(sample, cond):
    time.sleep(0.1)
    return sample.float().mean(1) + torch.rand(len(sample))
"""


@pytest.mark.slow
def test_a_run_is_that_of_other_workers_bit_for_bit_though_it_was_killed(tmp_path):
    (tmp_path / "own.py").write_text(DRAWS)
    place = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    words = [sys.executable, "-m", "difftilt.cli"]
    task = ["finetune", "dna", "--reward", f"{tmp_path}/own.py:score", "--batch", "16", "--evaluate", "16"]
    task += ["--rounds", "4", "--save-every", "1"]

    def weights(folder: Path) -> dict[str, bytes]:
        last = max((folder / "checkpoints").glob("round-*"))
        return {path.name: path.read_bytes() for path in last.glob("*.safetensors")}

    alone, killed = tmp_path / "alone", tmp_path / "killed"
    subprocess.run([*words, *task, "--reward-workers", "2", "--out", alone], check=True, env=place)
    with subprocess.Popen(
        [*words, *task, "--reward-workers", "ray://2", "--out", killed], env=place
    ) as process:
        while not (killed / "checkpoints" / "round-000002").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9
    subprocess.run([*words, "resume", killed], check=True, env=place)
    assert weights(killed) == weights(alone) and weights(alone)
