"""The keeper: a process between the one that asks and its workers, which it makes, watches and ends.

Workers that die are forked anew from the keeper, never from the asking process in the midst of its work, so
that all of them know the reward as it was at first. When the asking process ends, however it does, the keeper
notices, and ends the workers with all that they have started.
"""

import ctypes
import gc
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from concurrent.futures import Future
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import SeedSequence  # now, not in each worker
from pebble import CONSTS, ProcessExpired, ProcessPool

from difftilt.answers import Failure, described, item_of, kind_of, numbers_of
from difftilt.conditions import take
from difftilt.rewards.process_tree import kill_sessions
from difftilt.rewards.worker_task import CHUNK, Limits, unpacked
from difftilt.shapes import Cond, Sample

TICK = 0.02  # seconds between looks at whether workers live and keep to their time
LOOK = 0.5  # seconds between looks at whether anybody still asks
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the asking process decides what they mean
KILL_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def _tell(results: int, *message: Any) -> None:
    """One line: short writes to a pipe are whole, whoever else writes to it and whoever is killed."""
    try:
        os.write(results, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:  # nobody asks any more
        return


def keep(reward: Any, limits: Limits, count: int, tasks: Connection, results: int, owner: int) -> None:
    """Runs the pool until nobody asks any more."""
    os.setsid()
    _ignore_signals()
    gc.freeze()  # else collections in workers would copy all memory that they share
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    CONSTS.sleep_unit, CONSTS.term_timeout = TICK, TICK / 2
    began = (reward, limits, results, os.getpid())
    context = multiprocessing.get_context("fork")
    pool = ProcessPool(count, initializer=_begin, initargs=began, context=context)
    try:
        while os.getppid() == owner and pool.active:
            if not tasks.poll(LOOK):
                continue
            message = tasks.recv()
            if message is None:
                break
            task, work, limit = message
            done = pool.schedule(_score, (task, work), timeout=limit)
            done.add_done_callback(partial(_over, limits, results, task))
    except (EOFError, OSError, RuntimeError):  # nobody asks, or the pool is broken
        pass
    finally:
        pool.stop()
        kill_sessions(child.pid for child in multiprocessing.active_children() if child.pid)
        os._exit(0)


def _over(limits: Limits, results: int, task: int, done: Future[None]) -> None:
    """Says how a task ended."""
    error = done.exception()
    why = None
    if isinstance(error, TimeoutError):
        why = f"took longer than {limits.timeout:g} s"
    elif isinstance(error, ProcessExpired):
        why = _exit(error.exitcode)
    elif error is not None:
        why = f"raised {described(error)}"
    _tell(results, task, "over", why)


def _exit(code: int) -> str:
    if code >= 0:
        return f"ended its process with code {code}"
    names = {int(number): number.name for number in signal.Signals}
    return f"ended its process with code {128 - code} ({names.get(-code, f'signal {-code}')})"


# In a worker

_worker: tuple[Any, int] | None = None  # the reward, and where results are written


def _begin(reward: Any, limits: Limits, results: int, keeper: int) -> None:
    """What a worker does first."""
    global _worker
    os.setsid()
    _ignore_signals()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(KILL_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(1)
    torch.set_num_threads(1)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a worker is killed in the end, with what waits there
    if limits.memory is not None:
        most = _held() + limits.memory * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    _worker = reward, results


def _held() -> int:
    """Bytes of memory that this process could write to; 0 if the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


def _ignore_signals() -> None:
    """By a handler that does nothing, so that programs which are started do not inherit it."""
    for number in IGNORED:
        signal.signal(number, lambda *_: None)


def _score(task: int, content: bytes) -> None:
    """Scores samples and says each number at once; stops early if that takes longer than was thought."""
    if _worker is None:
        raise RuntimeError("a worker scores only after it was given its reward")
    reward, results = _worker
    _tell(results, task, "began", os.getpid())
    try:
        work = unpacked(content)
    except Exception as error:
        _tell(results, task, "unread", described(error))
        return
    start = now = time.monotonic()
    for row, (number, attempt) in enumerate(work.draws):
        if row and now - start > CHUNK:
            return
        _seed(work.seed, number, attempt)
        index = torch.tensor([row])
        said = _answer(reward, work.sample[index], take(work.cond, index))
        began, now = now, time.monotonic()
        _tell(results, task, *said, now - began)


def _seed(seed: int, number: int, attempt: int) -> None:
    words = SeedSequence([seed, number, attempt, 1]).generate_state(3).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.default_generator.manual_seed(words[2])


def _answer(reward: Any, sample: Sample, cond: Cond) -> tuple[str, float | str]:
    """What came of one sample: a number, or why there is none and whether another try may help."""
    try:
        answer = reward(sample, cond)
    except BaseException as error:  # a reward that exits or is interrupted has failed, like any other
        what = described(error)
        if "re-initialize CUDA in forked" in what:
            return "bad", "uses a GPU, which workers cannot; keep it on the CPU, or score it without workers"
        return "raised", f"raised {what}"
    numbers = numbers_of(answer, torch.device("cpu"))
    if numbers is None:
        return "bad", f"returned {kind_of(answer)} instead of one number"
    if numbers.shape != (1,):
        return "bad", f"returned shape {tuple(numbers.shape)} instead of (1,)"
    number = numbers.item()
    item = item_of(number, answer[0] if isinstance(answer, list | tuple) else number)
    return ("bad", item.reason) if isinstance(item, Failure) else ("number", item)
