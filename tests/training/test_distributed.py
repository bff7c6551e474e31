"""Two processes under torchrun are one run."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.distributed import TCPStore
from torch.distributed.rendezvous import rendezvous
from toy_run import Job, remains, rounds_saved
from two_processes import BATCH, LEARN, ROUNDS

from difftilt.conditions import unconditional
from difftilt.training.distributed import FRESH, make_accelerator

SCRIPT = Path(__file__).parent / "two_processes.py"


def torchrun(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*command, str(SCRIPT), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def noiseless(x, cond):
    return x[:, 0]


def value(job: Job) -> float:
    """J over so many chains that its own error is small beside that of a round."""
    torch.manual_seed(9)
    job.objective.reward.reward = noiseless
    return job.objective.sample(job.policy, unconditional(20_000)).stats()["objective"].item()


def test_two_processes_are_one_run(ram):
    twins = torchrun("main", ram)
    single = Job(batch=BATCH, **LEARN)
    single.train(ram / "one", ROUNDS, save_every=ROUNDS)
    output, _ = twins.communicate(timeout=300)
    assert twins.returncode == 0, output

    first, second = (torch.load(ram / f"policy-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)

    before, one = value(Job(batch=BATCH, **LEARN)), value(single)
    double = Job(batch=BATCH, **LEARN)
    double.policy.load_state_dict(first)
    single.objective.reward.reward = single.noisy
    error = single.objective.sample(single.policy, unconditional(BATCH)).stats()["objective_se"].item()
    assert one > before + 3 * error, "nothing was learned, so equal values would say nothing"
    assert abs(value(double) - one) < error

    assert (ram / "totals-0").read_text() == (ram / "totals-1").read_text()
    assert (ram / "totals-0").read_text().split()[0] == str(ROUNDS * BATCH)

    assert [(ram / f"preempted-{rank}").read_text() for rank in (0, 1)] == ["4 4", "4 4"]
    assert remains(ram / "broken") == remains(ram / "whole")
    assert {"process-0.json", "process-1.json"} <= remains(ram / "whole").keys()


def test_a_restarted_job_does_not_see_what_dead_processes_left_in_the_store(monkeypatch):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "RANK": "0", "WORLD_SIZE": "1",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "GROUP_WORLD_SIZE": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    seen = []
    for attempt in "0", "1", "0":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        mine, rank, size = next(rendezvous(f"{FRESH}://", rank=0, world_size=1))
        seen.append(mine.check(["address"]))
        mine.set("address", attempt)
        assert (rank, size) == (0, 1)
    assert seen == [False, False, True]


def test_processes_that_do_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but they found 1; use torchrun"):
        make_accelerator()


@pytest.mark.slow
def test_a_dead_process_ends_the_job_and_the_run_can_go_on(ram):
    dice, rounds = random.Random(0), 0
    for _ in range(5):
        job = torchrun("forever", ram, 100_000)
        while rounds_saved(ram / "run") <= rounds:
            assert job.poll() is None, job.communicate()[0]
            time.sleep(0.01)
        time.sleep(dice.uniform(0, 0.3))
        os.kill(int((ram / f"pid-{dice.randrange(2)}").read_text()), signal.SIGKILL)
        start = time.monotonic()
        assert job.wait(60) != 0
        print(f"ended after {time.monotonic() - start:.1f} s")
        rounds = rounds_saved(ram / "run")
    rounds += 3
    for folder in ("run", "whole"):
        if folder == "whole":
            (ram / "run").rename(ram / "broken")
        job = torchrun("forever", ram, rounds)
        output, _ = job.communicate(timeout=300)
        assert job.returncode == 0, output
    assert remains(ram / "broken") == remains(ram / "run")
