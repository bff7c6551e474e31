"""What a run would cost, found by playing a small round of it."""

import copy
import math
from typing import Any

import torch

from difftilt.experiment.job import Job
from difftilt.guard import Guard
from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Objective
from difftilt.training.fit import denoisers

PLAYED = 64  # samples in the round that is played


def plan(job: Job) -> dict[str, Any]:
    """Sizes, and the calls that a whole run would make, found by playing a small round without the reward."""
    training, small = job.training, min(job.training.batch, PLAYED)
    algorithm = copy.deepcopy(job.algorithm)
    algorithm.setup(job.policy, job.cond(2))
    reward = Guard(lambda sample, _: sample.flatten(1).sum(1).float(), "plan")
    objective = Objective(reward, job.objective.reference, job.objective.alpha)
    counter, yields = NetworkCalls(), 0
    with counter.watching(denoisers(job.policy, objective.reference, algorithm)):
        for loss in algorithm.losses(job.policy, objective, job.cond(small)):
            loss.value.backward()
            yields += 1
    job.policy.zero_grad()
    scale = training.batch / small
    with torch.no_grad():
        state = job.policy.initial(job.cond(1)).sample()
    trainable = sum(p.numel() for p in job.policy.parameters() if p.requires_grad)
    return {
        "trainable_parameters": trainable,
        "all_parameters": sum(p.numel() for p in job.policy.parameters()),
        "state_shape": list(state.shape[1:]),
        "decisions_per_sample": job.policy.steps + 1,
        "stored_states_mib": round((job.policy.steps + 1) * training.batch * state.nbytes / 2**20, 1),
        "gradient_steps": training.rounds * math.ceil(yields / training.accumulate),
        "reward_calls": round(training.rounds * reward.calls * scale)
        + 2 * training.evaluate
        + 16 * training.check_start,
        "network_calls": {
            "forward": round(training.rounds * counter.forward * scale),
            "backward": round(training.rounds * counter.backward * scale),
        },
    }
