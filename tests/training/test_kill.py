"""A run that is killed again and again ends as the unbroken one did, bit for bit."""

import json
import os
import random
import signal
import time
from pathlib import Path

from faults import at_operation
from toy_run import live, remains, rounds_saved

ROUNDS, KILLS, AIMED = 160, 34, 26
OPERATIONS = 40  # about as many as one round with its checkpoint has


def live_until(folder: Path, operation: int) -> None:
    """A life that ends at the n-th file operation."""

    def die(name: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with at_operation(operation, die):
        live(folder, ROUNDS)


def test_kills_leave_no_trace(servant, ram):
    whole = servant.Process(target=live, args=(ram / "whole", ROUNDS))
    whole.start()
    whole.join()
    assert whole.exitcode == 0

    folder, dice = ram / "broken", random.Random(0)
    landed = inside = progress = 0
    for kill in range(KILLS):
        before = rounds_saved(folder)
        if aimed := kill < AIMED:
            life = servant.Process(target=live_until, args=(folder, dice.randint(OPERATIONS, 3 * OPERATIONS)))
            life.start()
        else:
            life = servant.Process(target=live, args=(folder, ROUNDS))
            life.start()
            while life.is_alive() and rounds_saved(folder) == before:
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 0.03))
            life.kill()
        life.join()
        landed += life.exitcode == -signal.SIGKILL
        inside += any((folder / "checkpoints").glob(".tmp-round-*"))
        progress += rounds_saved(folder) > before
        assert aimed or life.exitcode == -signal.SIGKILL
    assert landed >= 30
    assert inside >= 10
    assert progress >= 0.8 * KILLS
    assert rounds_saved(folder) < ROUNDS, "the last kill came after the end"

    last = servant.Process(target=live, args=(folder, ROUNDS))
    last.start()
    last.join()
    assert remains(folder) == remains(ram / "whole")
    steps = [json.loads(row)["step"] for row in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 2 * ROUNDS + 1))
    assert not list((folder / "checkpoints").glob(".tmp-*"))
