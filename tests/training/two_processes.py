"""What each of two processes does; started by torchrun. Its argument is the folder of all runs."""

import os
import signal
import sys
from pathlib import Path

import torch
from toy_run import Job, rounds_saved

from difftilt.training.distributed import finish, make_accelerator
from difftilt.training.signals import Preempted

ROUNDS, BATCH = 60, 128
LEARN = {"alpha": 0.5, "advantage": "batch", "epochs": 2, "minibatches": 4}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = make_accelerator(timeout_minutes=1.0)
    rank = accelerator.process_index
    job = Job(batch=BATCH // accelerator.num_processes, **LEARN)
    with torch.no_grad():  # a process that starts from other weights is put right
        job.policy.network.get_parameter("layers.0.weight").add_(rank)
    totals = job.train(folder / "two", ROUNDS, accelerator=accelerator, save_every=ROUNDS)
    torch.save(job.policy.state_dict(), folder / f"policy-{rank}.pt")
    (folder / f"totals-{rank}").write_text(f"{totals.reward_calls} {totals.network_calls}")

    Job().train(folder / "whole", 6, accelerator=accelerator, target_kl=0.5)
    job = Job()
    reward = job.objective.reward.reward

    def last_words(x, cond):
        if job.objective.reward.round == 3 and rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return reward(x, cond)

    job.objective.reward.reward = last_words
    try:
        job.train(folder / "broken", 6, accelerator=accelerator, save_every=100, target_kl=0.5)
    except Preempted as stop:
        (folder / f"preempted-{rank}").write_text(f"{stop.rounds} {rounds_saved(folder / 'broken')}")
    Job().train(folder / "broken", 6, accelerator=accelerator, target_kl=0.5)
    finish(accelerator)


def forever(folder: Path) -> None:
    """Trains until it is killed; says who it is."""
    accelerator = make_accelerator(timeout_minutes=0.5)
    (folder / f"pid-{accelerator.process_index}").write_text(str(os.getpid()))
    Job().train(folder / "run", int(sys.argv[3]), accelerator=accelerator)
    finish(accelerator)


if __name__ == "__main__":
    {"main": main, "forever": forever}[sys.argv[1]](Path(sys.argv[2]))
