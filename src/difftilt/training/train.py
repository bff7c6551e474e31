"""A run that can be killed at any moment and goes on as if nothing had happened."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from difftilt.data.owned import check_inside, sweep
from difftilt.data.replaced import let_go
from difftilt.guard import Guard
from difftilt.objective import Algorithm, Objective, standard_error
from difftilt.policy import Policy
from difftilt.settings import Count, check_value
from difftilt.shapes import Cond, Stateful
from difftilt.training import checkpoint
from difftilt.training.distributed import check_accelerator, largest, make_accelerator, start_alike, total
from difftilt.training.fit import denoisers, fit
from difftilt.training.log import MetricLog, Row
from difftilt.training.manifest import CheckpointError
from difftilt.training.progress import progress
from difftilt.training.settings import Training
from difftilt.training.signals import Never, Preempted, Stop, watch_signals
from difftilt.training.state import Scheduler, State
from difftilt.training.trackers import Trackers, check_trackers
from difftilt.training.trust_region import TrustRegion


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


@dataclass(frozen=True)
class Round:
    """A round of a run, before it is saved.

    Args:
        number: From 0.
        rows: The numbers of each gradient step, as in `metrics.jsonl`.
        totals: Of the run so far, this round included.
    """

    number: int
    rows: tuple[Row, ...]
    totals: Totals


def train(
    folder: Path,
    policy: Policy,
    objective: Objective,
    algorithm: Algorithm,
    conds: Callable[[int], Cond],
    optimizer: torch.optim.Optimizer,
    training: Training | None = None,
    accelerator: Accelerator | None = None,
    *,
    scheduler: Scheduler | None = None,
    generators: Sequence[torch.Generator] = (),
    target_kl: float | None = None,
    region: TrustRegion | None = None,
    body: Stateful | None = None,
    run: Mapping[str, Any] | None = None,
    until: Callable[[Round], bool] | None = None,
    keep: int = 2,
    show: bool = True,
) -> Iterator[Round]:
    """Trains round by round, from where the newest good checkpoint in the folder left off.

    The caller's loop body is the end of each round: the checkpoint of a round is written when the generator
    resumes, with what the body has changed. All draws but those of private generators are seeded anew for
    every round. A loop that is left before its end has saved the rounds whose bodies were done.

    Args:
        folder: Of the run; gets `metrics.jsonl` and `checkpoints/`, and what the trackers write.
        conds: The conditions of a round, given its number from 0; may draw from the global generators.
        optimizer: Holds the trainable parameters of the policy and of the algorithm.
        training: How to train. Its rounds are in all, over all lives of the run; batch, learning rates and
            schedule are the optimizer's, the scheduler's and conds' affair.
        scheduler: Of the learning rate; moved after every round.
        generators: Private generators of the reward or the conditions, to be saved with the run.
        target_kl: If given, KL in nats that the objective's alpha is moved to reach; see `KLController`.
        region: If given, it moves the policy's learning rate after every round; made of the optimizer.
        body: Keeper of what the caller's body changes, if that is neither the policy, the algorithm nor the
            reward: it is saved and restored with them.
        run: What tells this run from others, as JSON holds it; every checkpoint says it.
        until: If given, the run ends, saved, with the first round of which this is true in any process. A run
            that goes on first asks about the round that it was saved with, without its rows.
        keep: Checkpoints that remain, at least 1; with fewer than 2 a damaged one has no successor.
        show: Draw a bar if the terminal can, else print a line now and then.

    Raises:
        Preempted: After SIGINT, SIGTERM or SIGUSR1, once the round and its body are done and saved.
        RewardError: As everything else that goes wrong in a round, after the last round has been saved.
        NonFiniteError: Before a NaN reaches the weights, after the last round has been saved.
        CheckpointError: If no checkpoint is whole, or one cannot be written.
        ImportError: If the package of a tracker is missing.
    """
    training, accelerator = training or Training(), accelerator or make_accelerator()
    start_alike([policy, objective.reference, algorithm], accelerator)
    parts = (scheduler, generators, target_kl, body, run or {})
    state = State(policy, objective, algorithm, optimizer, training, accelerator, *parts)
    with (
        _Keeper(folder, state, keep) as keeper,
        state.counter.watching(denoisers(policy, objective.reference, algorithm)),
        _ended_by_signal(state, watch_signals()) as stop,
        progress(training.rounds, state.rounds, show and accelerator.is_main_process) as tell,
    ):
        for number in keeper.left(stop, until):
            for row in fit(
                policy, objective, algorithm, map(conds, [number]), optimizer, training, accelerator,
                start=number, kl_controller=state.kl_controller, region=region,
            ):  # fmt: skip
                tell(keeper.step(row), number)
            yield (ended := keeper.end_round())
            tell(ended.rows[-1] if ended.rows else {}, state.rounds)
            if keeper.close(stop, until, ended):
                return


@contextmanager
def _ended_by_signal(state: State, watching: AbstractContextManager[Stop | Never]) -> Iterator[Stop | Never]:
    """What goes wrong after a signal is its doing: Ctrl-C reaches the programs that a reward runs, too."""
    with watching as stop:
        try:
            yield stop
        except Exception as error:
            if not stop.number or isinstance(error, Preempted):
                raise
            raise Preempted(stop.number, state.rounds) from error


class _Keeper:
    """Keeps the last finished round at hand, so that whatever happens later it can be saved."""

    def __init__(self, folder: Path, state: State, keep: int):
        self.state, self._folder, self._keep = state, folder / "checkpoints", keep
        self._accelerator, training = state.accelerator, state.training
        check_value("keep", keep, Count)
        check_accelerator(self._accelerator)
        check_trackers(training.log_to)
        main = self._accelerator.is_main_process
        if main:
            check_inside(folder)
            sweep(folder)
        path = checkpoint.newest(self._folder, self._accelerator)
        if path is not None:
            state.restore(path)
        self._started = time.monotonic() - state.seconds
        self._log = MetricLog(folder / "metrics.jsonl", state.log_bytes, state.log_sha256) if main else None
        names, running = (training.log_to, self._accelerator.trackers) if main else ((), ())
        self._trackers = Trackers(names, folder, state.steps, vars(training), running)
        self._rows: list[Row] = []
        self._snapshot, self._saved = state.snapshot(), path is not None

    def step(self, row: Row) -> Row:
        """Books one gradient step; returns its row with the reward calls, and failures, so far."""
        self.state.stepped()
        reward = self.state.objective.reward
        counts = {"reward_calls": reward.calls, **reward.failures}
        so_far = {name: total(count, self._accelerator) for name, count in counts.items()}
        row = {**row, **part_means(reward), **so_far}
        self._rows.append(row)
        if self._log:
            self._log.write({"step": self.state.steps, **row})
        self._trackers.write(self.state.steps, row)
        return row

    def end_round(self) -> Round:
        """What the caller's body gets to see."""
        self.state.finished_round()
        self.state.seconds = time.monotonic() - self._started
        self.state.log_bytes = self._log.flush() if self._log else 0
        self.state.log_sha256 = self._log.digest if self._log else ""
        rows, self._rows = tuple(self._rows), []
        return Round(self.state.rounds - 1, rows, self.totals())

    def close(self, stop: Stop | Never, until: Callable[[Round], bool] | None, ended: Round) -> bool:
        """Takes a round, with what the body has changed, for the last finished one, and saves it when due.

        Returns:
            Whether the run ends with it; see `told_to_end`.
        """
        state, training = self.state, self.state.training
        state.seconds = time.monotonic() - self._started
        self._snapshot, self._saved = state.snapshot(), False
        if state.rounds % training.save_every == 0 or state.rounds == training.rounds:
            self.save()
        return self.told_to_end(stop, until, ended)

    def left(self, stop: Stop | Never, until: Callable[[Round], bool] | None) -> range:
        """The rounds to do; none where an earlier life was about to end."""
        done, planned = self.state.rounds, self.state.training.rounds
        over = done and self.told_to_end(stop, until, Round(done - 1, (), self.totals()))
        return range(0 if over else done, 0 if over else planned)

    def told_to_end(self, stop: Stop | Never, until: Callable[[Round], bool] | None, ended: Round) -> bool:
        """Whether the run ends with this round, which then is saved.

        Raises:
            Preempted: After a signal, also one that came while the round was saved.
        """
        signal = largest(stop.number, self._accelerator)
        over = until is not None and largest(int(until(ended)), self._accelerator) > 0
        if signal or over:
            self.save()
        if signal:
            raise Preempted(signal, self.state.rounds)
        return over

    def save(self) -> None:
        """Saves the last finished round, unless it is."""
        if not self._saved:
            if self._log:
                self._log.sync()
            checkpoint.save(self._folder, self._snapshot, self._accelerator, self._keep)
            self._saved = True
            if self._snapshot.rounds and self._accelerator.is_main_process:
                let_go(self._folder.parent)  # the run that was there before: this one can be resumed now

    def totals(self) -> Totals:
        state = self.state
        counts = state.objective.reward.calls, state.counter.forward, state.counter.backward
        calls = [total(count, self._accelerator) for count in counts]
        return Totals(state.rounds, state.steps, *calls, seconds=state.seconds)

    def __enter__(self) -> "_Keeper":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            # with several processes the others are not here to write their part
            alone = self._accelerator.num_processes == 1
            left = isinstance(error, Exception | GeneratorExit)
            if alone and left and not isinstance(error, CheckpointError):
                self.save()
        finally:
            if self._log:
                self._log.close()
            self._trackers.close()


def part_means(reward: Guard) -> dict[str, float]:
    """What each part of a combined reward said of the last batch's samples that it was asked about."""
    numbers: dict[str, float] = {}
    for name, answers in reward.parts.items():
        asked = answers[answers.isfinite()]
        if len(asked):
            numbers[f"part {name}"] = asked.mean().item()
            numbers[f"part {name}_se"] = standard_error(asked).item()
    return numbers
