"""A run that can be killed at any moment and goes on as if nothing had happened."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from accelerate import Accelerator

from difftilt.networks.network_calls import NetworkCalls
from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy
from difftilt.settings import Count, Natural, Positive, check_settings
from difftilt.shapes import Cond
from difftilt.training import checkpoint
from difftilt.training.distributed import autocast, largest, make_accelerator, start_alike, total
from difftilt.training.ema import EMA
from difftilt.training.fit import fit
from difftilt.training.kl_controller import KLController
from difftilt.training.log import Journal, Row, progress_bar
from difftilt.training.signals import Preempted, watch_signals
from difftilt.training.state import Scheduler, State, load_weights


@dataclass(frozen=True)
class Totals:
    """What a run has cost, over all its lives and processes. Work that a kill undid is not counted.

    Args:
        network_calls: Samples through the denoisers, of the policy and of the reference.
        network_calls_backward: Samples through the policy's denoiser, backwards.
    """

    rounds: int
    steps: int
    reward_calls: int
    network_calls: int
    network_calls_backward: int
    seconds: float


def train(
    folder: Path,
    policy: Policy,
    objective: Objective,
    algorithm: Algorithm,
    conds: Callable[[int], Cond],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator | None = None,
    *,
    rounds: int,
    seed: int = 0,
    scheduler: Scheduler | None = None,
    generators: Sequence[torch.Generator] = (),
    accumulate: int = 1,
    max_norm: float = 1.0,
    target_kl: float | None = None,
    ema_decay: float | None = None,
    save_every: int = 1,
    keep: int = 2,
    progress: bool = True,
) -> Totals:
    """Trains until `rounds` rounds are done, from where the newest good checkpoint in the folder left off.

    Args:
        folder: Of the run; gets `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
        conds: The conditions of a round, given its number from 0; may draw from the global generators.
        optimizer: Holds the trainable parameters of the policy and of the algorithm.
        rounds: How many in all, over all lives of the run.
        seed: Random draws depend on (seed, round, process) alone.
        scheduler: Of the learning rate; moved after every round.
        generators: Private generators of the reward or the conditions, to be saved with the run.
        accumulate: Losses per gradient step, at least 1.
        max_norm: The gradient is clipped to this length, above 0.
        target_kl: If given, KL in nats that the objective's alpha is moved to reach; see `KLController`.
        ema_decay: If given, a moving average of the weights is kept, which `load_policy` prefers.
        save_every: Rounds between checkpoints, at least 1; there is always one at the end.
        keep: Checkpoints that remain, at least 1; with fewer than 2 a damaged one has no successor.
        progress: Draw a bar if the terminal can.

    Raises:
        Preempted: After SIGINT, SIGTERM or SIGUSR1, once the round is done and saved.
        RewardError: As everything else that goes wrong in a round, after the last round has been saved.
        NonFiniteError: Before a NaN reaches the weights, after the last round has been saved.
        CheckpointError: If no checkpoint is whole, or one cannot be written.
    """
    plan = _Plan(rounds, seed, accumulate, max_norm, save_every, keep, progress)
    accelerator = accelerator or make_accelerator()
    start_alike([policy, objective.reference, algorithm], accelerator)
    ema = None if ema_decay is None else EMA(policy, ema_decay)
    budget = None if target_kl is None else KLController(objective, target_kl)
    state = State(
        policy, algorithm, objective.reward, optimizer, scheduler, ema, budget, generators, accelerator, seed
    )
    return _go(folder, state, objective, conds, plan)


def load_policy(folder: Path, policy: Policy, *, average: bool = True) -> int:
    """Puts the weights of a run's newest good checkpoint into a policy built as the run's was.

    Args:
        folder: Of the run.
        average: Prefer the moving average of the weights, if the run kept one.

    Returns:
        How many rounds the weights were trained for.
    """
    path = _newest(folder)
    averaged = checkpoint.read(path, "ema") if average else None
    load_weights(policy, checkpoint.read(path, "policy") | (averaged or {}))
    return checkpoint.read(path, "training")["rounds"]


def load_algorithm(folder: Path, algorithm: Algorithm) -> int:
    """Puts what a run's algorithm learned into one that was set up as the run's was: a value, a critic.

    Returns:
        How many rounds it was trained for.
    """
    path = _newest(folder)
    algorithm.load_state_dict(checkpoint.read(path, "process-0")["algorithm"])
    return checkpoint.read(path, "training")["rounds"]


def load_alpha(folder: Path) -> float | None:
    """The alpha that a run with a target KL had reached at its newest good checkpoint."""
    path = checkpoint.newest(folder / "checkpoints")
    budget = None if path is None else checkpoint.read(path, "training").get("budget")
    return budget and budget["alpha"]


def _newest(folder: Path) -> Path:
    path = checkpoint.newest(folder / "checkpoints")
    if path is None:
        raise ValueError(f"there is no checkpoint in {folder / 'checkpoints'}; train the run first")
    return path


@dataclass(frozen=True)
class _Plan:
    rounds: Natural
    seed: Natural
    accumulate: Count
    max_norm: Positive
    save_every: Count
    keep: Count
    progress: bool

    def __post_init__(self):
        check_settings(self)


def _go(
    folder: Path, state: State, objective: Objective, conds: Callable[[int], Cond], plan: _Plan
) -> Totals:
    """Runs the rounds that are left."""
    policy, accelerator = state.policy, state.accelerator
    with (
        _Keeper(folder, state, plan.keep) as keeper,
        _watched(denoisers(policy, objective.reference, state.algorithm), state.counter, accelerator),
        watch_signals() as stop,
        progress_bar(plan.rounds, state.rounds, plan.progress and accelerator.is_main_process) as show,
    ):
        for number in range(state.rounds, plan.rounds):
            for row in fit(
                policy,
                objective,
                state.algorithm,
                map(conds, [number]),
                state.optimizer,
                accelerator,
                seed=plan.seed,
                start=number,
                accumulate=plan.accumulate,
                max_norm=plan.max_norm,
                budget=state.budget,
            ):
                keeper.step(row)
                show(row, number)
            keeper.finish_round()
            show({}, state.rounds)
            signal = largest(stop.number, accelerator)
            if signal or state.rounds % plan.save_every == 0 or state.rounds == plan.rounds:
                keeper.save()
            if signal:
                raise Preempted(signal, state.rounds)
    return keeper.totals()


def denoisers(policy: Policy, reference: Policy, algorithm: Algorithm) -> list[nn.Module]:
    """The networks of the chains that a run samples from, those among them that an algorithm keeps."""
    own = [module for module in algorithm.modules() if isinstance(module, Policy)]
    return [chain.network for chain in (policy, reference, *own)]


@contextmanager
def _watched(networks: list[nn.Module], counter: NetworkCalls, accelerator: Accelerator) -> Iterator[None]:
    """Networks run in the accelerator's precision, and are counted."""
    with autocast(networks, accelerator), counter.watching(networks):
        yield


class _Keeper:
    """Keeps the last finished round at hand, so that whatever happens later it can be saved."""

    def __init__(self, folder: Path, state: State, keep: int):
        self.state, self._folder, self._keep = state, folder / "checkpoints", keep
        self._accelerator = state.accelerator
        if self._accelerator.is_main_process:
            checkpoint.sweep(self._folder)
        path = checkpoint.newest(self._folder, self._accelerator)
        if path is not None:
            state.restore(path)
        self._started = time.monotonic() - state.seconds
        main = self._accelerator.is_main_process
        self._journal = Journal(folder, state.log_bytes, state.steps, active=main)
        self._snapshot, self._saved = state.snapshot(), path is not None

    def step(self, row: Row) -> None:
        """Books one gradient step."""
        self.state.stepped()
        calls = total(self.state.reward.calls, self._accelerator)
        self._journal.write(self.state.steps, {**row, "reward_calls": calls})

    def finish_round(self) -> None:
        self.state.finished_round()
        self.state.seconds = time.monotonic() - self._started
        self.state.log_bytes = self._journal.flush()
        self._snapshot, self._saved = self.state.snapshot(), False

    def save(self) -> None:
        """Saves the last finished round, unless it is."""
        if not self._saved:
            self._journal.sync()
            checkpoint.save(self._folder, self._snapshot, self._accelerator, self._keep)
            self._saved = True

    def totals(self) -> Totals:
        state = self.state
        counts = state.reward.calls, state.counter.forward, state.counter.backward
        calls = [total(count, self._accelerator) for count in counts]
        return Totals(state.rounds, state.steps, *calls, seconds=state.seconds)

    def __enter__(self) -> "_Keeper":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            # with several processes the others are not here to write their part
            alone = self._accelerator.num_processes == 1
            if alone and isinstance(error, Exception) and not isinstance(error, checkpoint.CheckpointError):
                self.save()
        finally:
            self._journal.close()
