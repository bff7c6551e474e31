"""A run that is asked to stop saves itself; asked twice, it obeys at once."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from toy_run import Job, remains, rounds_saved

from difftilt.training.signals import Preempted, watch_signals

ROUNDS = 150


def live_politely(folder: Path, rounds: int, slow: float = 0.0) -> None:
    """What a command does with `Preempted`."""
    torch.set_num_threads(1)
    job = Job()
    reward = job.objective.reward.reward
    if slow:
        job.objective.reward.reward = lambda x, cond: (time.sleep(slow), reward(x, cond))[1]
    try:
        job.train(folder, rounds)
    except Preempted as stop:
        sys.exit(128 + stop.signal)


def wait_for(condition, seconds: float = 60) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_the_run_goes_on_later(servant, ram, number):
    life = servant.Process(target=live_politely, args=(ram / "broken", ROUNDS))
    life.start()
    wait_for(lambda: rounds_saved(ram / "broken"))
    os.kill(life.pid, number)
    life.join()
    assert life.exitcode == 128 + number
    done = rounds_saved(ram / "broken")
    assert 0 < done < ROUNDS
    rows = (ram / "broken" / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 * done
    Job().train(ram / "broken", done + 3)
    Job().train(ram / "whole", done + 3, save_every=50)
    assert remains(ram / "broken") == remains(ram / "whole")


def test_a_second_signal_is_obeyed_at_once(servant, ram):
    life = servant.Process(target=live_politely, args=(ram, ROUNDS, 30.0))
    life.start()
    wait_for(lambda: (ram / "metrics.jsonl").exists())
    time.sleep(0.5)
    os.kill(life.pid, signal.SIGTERM)
    time.sleep(0.3)
    os.kill(life.pid, signal.SIGTERM)  # a launcher's echo of the first one
    time.sleep(1.2)
    assert life.is_alive()
    os.kill(life.pid, signal.SIGTERM)
    life.join(5)
    assert life.exitcode == -signal.SIGTERM


def test_handlers_are_put_back():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    with pytest.raises(KeyError), watch_signals() as stop:
        signal.raise_signal(signal.SIGUSR1)
        assert stop.number == signal.SIGUSR1
        raise KeyError
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_run_outside_the_main_thread_has_no_handlers(ram):
    done = []
    thread = threading.Thread(target=lambda: done.append(Job().train(ram, 1)))
    thread.start()
    thread.join()
    assert done[0].rounds == 1


@pytest.mark.parametrize("rounds", [1, 5])
def test_a_signal_is_not_lost_and_saves_out_of_turn(ram, rounds):
    job = Job()
    reward = job.objective.reward.reward

    def last_words(x, cond):
        signal.raise_signal(signal.SIGTERM)
        return reward(x, cond)

    job.objective.reward.reward = last_words
    with pytest.raises(Preempted, match="got SIGTERM; the run stopped after round 1"):
        job.train(ram, rounds, save_every=100)
    assert rounds_saved(ram) == 1
