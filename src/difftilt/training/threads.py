"""As many threads of the processor as a model is quickest with, measured before a run begins."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from difftilt.algorithms.minibatches import at_once
from difftilt.conditions import take
from difftilt.policy import Policy, level
from difftilt.shapes import Cond, State

WORTH = 1.1  # times faster that more threads must be
ENOUGH, PASSES = 0.1, 20  # seconds, or passes, that a time is the least of


def quickest(policy: Policy, cond: Cond) -> int:
    """The fewest threads that a pass, forward and backward, is about as quick with as with any number.

    Tried are as many as torch would take (`torch.get_num_threads`, which OMP_NUM_THREADS sets), shared among
    the processes of this machine, then half of them, and so on. A GPU's passes need one.

    Without gradients, passes go forward only.

    Args:
        policy: Nothing of it changes.
        cond: Of the chains that pass; of large states only as many do as pass at once in training.
    """
    most = torch.get_num_threads() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if most < 2 or next(policy.parameters(), torch.empty(0)).device.type != "cpu":
        return 1
    count = least_count = most
    with _untouched(policy):
        x = policy.initial(cond).sample()
        rows = torch.arange(len(x))[: at_once(x)]
        x, cond = x[rows], take(cond, rows)
        least = _seconds(policy, x, cond, count)
        while count > 1:
            count //= 2
            took = _seconds(policy, x, cond, count)
            if took > WORTH * least:
                break
            least, least_count = min(took, least), count
    return least_count


@contextmanager
def using(threads: int | None) -> Iterator[None]:
    """Computes with so many threads while the block runs; with as many as before if none are named."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _untouched(policy: Policy) -> Iterator[None]:
    """Leaves generators, and what layers remember of their inputs, as they are, and no gradient."""
    modes = [(module, module.training) for module in policy.modules()]
    policy.eval()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        policy.zero_grad()
        for module, mode in modes:
            module.training = mode


def _seconds(policy: Policy, x: State, cond: Cond, threads: int) -> float:
    """The least time of a pass after the first; of the first one if that is long."""
    with using(threads):
        times = [_pass(policy, x, cond)]
        if times[0] < ENOUGH:
            times = [_pass(policy, x, cond)]
        while sum(times) < ENOUGH and len(times) < PASSES:
            times.append(_pass(policy, x, cond))
        return min(times)


def _pass(policy: Policy, x: State, cond: Cond) -> float:
    start = time.perf_counter()
    step = policy(x, level(x, policy.steps), cond)
    log_p = step.log_prob(step.sample()).sum()
    if log_p.requires_grad:
        log_p.backward()
    return time.perf_counter() - start
