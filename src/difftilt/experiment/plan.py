"""What a run would cost, and whether its settings fit together, before anything is touched or paid for."""

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from difftilt.conditions import batch_size, on_device_of, take
from difftilt.data.across import together
from difftilt.experiment.job import Job
from difftilt.guard import Guard
from difftilt.networks.blank import blanked
from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy, rollout
from difftilt.shapes import Cond, PerSample, Sample
from difftilt.training.alpha import FEWEST_REWARDS
from difftilt.training.fit import denoisers
from difftilt.training.seeds import DEALER, seed_round
from difftilt.training.settings import Training
from difftilt.training.sharding import check_shardable
from difftilt.training.trackers import check_trackers
from difftilt.training.trust_region import watched

MIB = 2**20
FEW = 64  # samples of an evaluation, up to which what is measured of them is tried before


# The chain that an algorithm learns from, given the problem and a copy of the algorithm
Chain = Callable[[Objective, Any], Policy]


@torch.random.fork_rng(devices=[])
def plan(job: Job, processes: int = 1, chain: Chain | None = None, *, process: int = 0) -> dict[str, Any]:
    """Sizes, and the calls that a whole run would make, found by playing a round on copies.

    The round is as large as those of the run, so what would be refused in one is refused here. Its reward is
    free, and its networks answer with zeros.

    Args:
        processes: That share the batch; all of them plan in step, if they have found each other.
        process: Which of them this is.
        chain: What is sampled; the job's policy by default.

    Raises:
        ValueError: If settings do not fit together, or need more memory than there is.
        ImportError: If a tracker's package is missing.
    """
    training = job.training
    share = per_process(training, processes)
    if job.target_kl is not None and training.evaluate < FEWEST_REWARDS:
        raise ValueError(
            f"a target KL needs an evaluation of {FEWEST_REWARDS} samples or more to start from, but got"
            f" {training.evaluate}; raise evaluate"
        )
    _check_budget(job)
    check_trackers(training.log_to)
    with torch.no_grad():
        state = job.policy.initial(job.cond(1)).sample()
    stored = (job.policy.steps + 1) * share * state.nbytes
    reward = Guard(_free, "of the trial round")
    objective = Objective(reward, job.objective.reference, job.objective.alpha)
    with _in_memory(stored, training.batch):
        algorithm = copy.deepcopy(job.algorithm)
        algorithm.setup(job.policy, job.cond(2))
        policy = job.policy if chain is None else chain(objective, algorithm)
        if training.parallel == "fsdp":
            check_shardable(policy, job.objective.reference, algorithm)
        if chain is None and training.evaluate <= FEW:
            _try_view(job)
        cond = share_of_round(job, 0, process, processes)
        with together(processes):
            played = _play(policy, objective, algorithm, cond, chain is None and training.trust_region > 0)
    trainable = sum(p.numel() for p in job.policy.parameters() if p.requires_grad)
    calls = training.rounds * processes
    return {
        "trainable_parameters": trainable,
        "all_parameters": sum(p.numel() for p in job.policy.parameters()),
        "state_shape": list(state.shape[1:]),
        "decisions_per_sample": job.policy.steps + 1,
        "stored_states_mib": round(stored * processes / MIB, 1),
        "gradient_steps": training.rounds * math.ceil(played.losses / training.accumulate),
        "reward_calls": calls * reward.calls + 2 * job.judged + 16 * training.check_start,
        "network_calls": {"forward": calls * played.calls.forward, "backward": calls * played.calls.backward},
    }


def share_of_round(job: Job, number: int, process: int, processes: int) -> Cond:
    """The conditions of a round that fall to one process.

    All processes draw those of the whole round alike, and each takes its part, so that none is lost or asked
    for twice, and what belongs together, such as a group, lies side by side.
    """
    batch, seed = job.training.batch, job.training.seed
    per_process(job.training, processes)
    if processes == 1:
        return job.cond(batch)
    seed_round(seed, number, DEALER)
    with together(1):  # each has all conditions
        whole = job.algorithm.arrange(job.cond(batch), number)
    seed_round(seed, number, process)
    share, left = divmod(batch_size(whole), processes)
    if left:
        raise ValueError(
            f"a batch of {batch} makes {batch_size(whole)} chains in whole groups, which {processes}"
            " processes cannot share equally; make it a multiple of the group's size and of their number"
        )
    return take(whole, torch.arange(share) + share * process)


def _check_budget(job: Job) -> None:
    """Raises ValueError if the budget of the reward does not exceed what both evaluations ask about."""
    budget = job.training.reward_budget
    if budget is not None and budget <= 2 * job.judged:
        raise ValueError(
            f"both evaluations ask about {2 * job.judged} samples, of the chain and as deployed, so a reward"
            f" budget must be above that, but got {budget}; raise it, or evaluate fewer"
        )


def per_process(training: Training, processes: int) -> int:
    """The conditions of a round that fall to each process."""
    share, left = divmod(training.batch, processes)
    if left or not share:
        raise ValueError(
            f"got a batch of {training.batch}, which {processes} processes cannot share equally; make it a"
            " multiple of their number"
        )
    return share


@dataclass(frozen=True)
class _Played:
    """What a round did."""

    losses: int
    calls: NetworkCalls


def _play(policy: Policy, objective: Objective, algorithm: Algorithm, cond: Cond, watch: bool) -> _Played:
    """One round without gradient steps, on whose chains it may be watched how far the policy moves."""
    networks, calls, losses = denoisers(policy, objective.reference, algorithm), NetworkCalls(), 0
    with blanked(networks), calls.watching(networks):
        for loss in algorithm.losses(policy, objective, on_device_of(policy, cond)):
            loss.value.backward()
            losses += 1
        if watch:
            watched(policy, on_device_of(policy, cond))()
    policy.zero_grad()
    return _Played(losses, calls)


@torch.no_grad()
def _try_view(job: Job) -> None:
    """Measures what an evaluation measures of samples, which may need more of them."""
    with blanked([job.policy.network]):
        sample = rollout(job.policy, job.judging(job.training.evaluate)).sample
    for measure in (job.view.diversity, job.view.distances):
        if measure is not None:
            measure(sample)


def _free(sample: Sample, cond: Cond) -> PerSample:
    """A finite number per sample, with a gradient if the sample has one."""
    return sample.flatten(1).float().nan_to_num().mean(1).tanh()


@contextmanager
def _in_memory(stored: int, batch: int) -> Iterator[None]:
    """Says in a sentence that a batch is too large for the machine."""
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    too_large = (
        f"a batch of {batch} needs {stored / MIB:,.0f} MiB for its states alone, of {most / MIB:,.0f} MiB of"
        " memory in all; make it smaller"
    )
    if stored > most:
        raise ValueError(too_large)
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if out_of_memory(error):
            raise ValueError(too_large) from error
        raise


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short; torch raises RuntimeError for that of the CPU."""
    said = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in said or "out of memory" in said
