"""How far a run is: a bar on a terminal, lines in a log, silence where it is asked for."""

import re

import pytest
from toy_run import Job

from difftilt.training.progress import progress

ROW = {
    "reward": 1.2341, "reward_se": 0.0123, "kl_nats": 2.1, "objective": 1.0, "objective_se": float("nan"),
    "reward_calls": 512,
}  # fmt: skip


@pytest.fixture
def clock(monkeypatch):
    """Seconds that only the test moves."""
    now = [100.0]
    monkeypatch.setattr("difftilt.training.progress.monotonic", lambda: now[0])
    return now


def lines(capfd, rounds: int, seconds: float, clock, done: int = 0, steps: int = 2) -> list[str]:
    """What a log gets of rounds that take so long each."""
    with progress(rounds, done, show=True) as tell:
        for number in range(done, rounds):
            clock[0] += seconds
            for _ in range(steps):
                tell(ROW, number)
            tell(ROW, number + 1)
    out, err = capfd.readouterr()
    assert out == ""
    return err.splitlines()


def test_a_slow_run_prints_a_line_per_round(capfd, clock):
    found = lines(capfd, 30, 12.0, clock)
    assert len(found) == 30
    assert found[11] == (
        "round 12/30  reward 1.234 ± 0.01  KL 2.1 nats  J 1  512 reward calls  12 s/round, 4 min left"
    )


def test_a_quick_run_prints_a_line_per_ten_seconds_and_its_last_round(capfd, clock):
    found = lines(capfd, 100, 0.5, clock)
    assert [int(line.split()[1].split("/")[0]) for line in found] == [1, 21, 41, 61, 81, 100]
    assert "0.5 s/round, 40 s left" in found[1] and "0 s left" in found[-1]


def test_the_pace_is_that_of_this_life(capfd, clock):
    found = lines(capfd, 42, 20.0, clock, done=40)
    assert [line.split("  ")[0] for line in found] == ["round 41/42", "round 42/42"]
    assert all("20 s/round" in line for line in found)


def test_nothing_is_said_unless_it_is_asked_for(capfd):
    with progress(3, 0, show=False) as tell:
        tell(ROW, 1)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    with progress(3, 0, show=True) as tell:
        tell(ROW, 1)
    assert not re.search("s/round", capfd.readouterr().err)


def test_a_run_tells_what_its_log_holds(ram, capfd):
    Job().train(ram, 2, show=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"(round \d/2  reward -?[\d.]+ ± [\d.]+  KL [\d.e-]+ ± [\d.e-]+ nats  J -?[\d.]+ ± [\d.]+"
        r"  \d+ reward calls  [\d.e-]+ s/round, \d+ s left\n){2}",
        err,
    ), err
    assert "round 2/2" in err and "32 reward calls" in err
