"""Any callable is a reward. The guard makes sure that what it returns is one."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch

from difftilt.answers import (
    Asked,
    BudgetSpent,
    Failure,
    Prefetching,
    RewardError,
    Told,
    check_arguments,
    described,
    is_missing,
    kind_of,
    learner_of,
    numbers_of,
)
from difftilt.conditions import copied, sample_keys, take
from difftilt.shapes import Cond, PerSample, Sample

Reward = Callable[[Sample, Cond], PerSample]
OnError = Literal["stop", "drop", "penalty"]


@runtime_checkable
class Composite(Protocol):
    """A reward that is made of others, each behind a guard of its own."""

    @property
    def guards(self) -> "Mapping[str, Guard]": ...

    @property
    def answers(self) -> Mapping[str, PerSample]:
        """What each of them said of the last samples; NaN where it was not asked, or had no answer."""
        ...


class Guard:
    """Checks a reward's answers and counts its calls; nothing invalid is ever turned into a number.

    The reward is shown copies: what it does to samples and conditions changes nothing elsewhere.

    Args:
        reward: Maps (samples, conditions) to one finite number per sample: a tensor, array, column or list.
            If it has `state_dict` and `load_state_dict`, what it learns is saved with the run.
        name: What messages call it; the function's own name by default.
        on_error: `stop` raises at the first bad value. `drop` marks bad samples with NaN, which
            `Objective.score` leaves out, and counts them in `dropped`. `penalty` gives them a stated number.
        penalty: That number; only with `penalty`.
        max_failures: Share of a batch, in (0, 1], above which bad samples stop the run after all.
        budget: Most calls, if given; before the first that would not fit, `BudgetSpent` is raised.
        cache: Answer repeated samples from memory. Right only for a deterministic reward without
            gradients whose answer for one sample does not depend on the rest of the batch.
        overlap: Parts in which `Objective.sample` draws a batch, at least 1: a reward that can begin with
            samples before it is asked, as `Workers` can, scores one part while the next is drawn.

    Attributes:
        calls: Samples scored so far.
        dropped: Samples so far that had no valid reward, and were left out or given the penalty.
        parts: Of a reward that is made of others: what each said of the last batch's valid samples, by name.
        failure: What was wrong with the first bad sample of the last batch; empty if none was.
        last_failure: The same of the last batch that had one.
        reasons: The same of each bad sample of the last batch, by its row.
    """

    def __init__(
        self,
        reward: Callable[[Sample, Cond], Any],
        name: str = "",
        on_error: OnError = "stop",
        cache: bool = False,
        *,
        penalty: float | None = None,
        max_failures: float = 1.0,
        budget: int | None = None,
        overlap: int = 1,
    ):
        if (on_error == "penalty") != (penalty is not None):
            raise ValueError(
                f"on_error {on_error!r} got penalty {penalty}; state the number that failed samples are given"
                " with on_error 'penalty', and none otherwise"
            )
        self.reward, self.on_error, self.penalty = reward, on_error, penalty
        self.max_failures, self.budget, self.overlap = max_failures, budget, overlap
        self.name = name or getattr(reward, "__name__", type(reward).__name__)
        self.calls, self.dropped, self._round = 0, 0, 0
        self.failure = self.last_failure = ""
        self.reasons: Mapping[int, str] = {}
        self.parts: Mapping[str, PerSample] = {}
        self._raised: dict[int, str] = {}
        self._cache: dict[str, float] | None = {} if cache else None
        self._told = Told()
        self._ahead: set[str] = set()  # keys of samples that were prefetched since the last call
        check_arguments(reward, self.name)

    def __call__(self, sample: Sample, cond: Cond) -> PerSample:
        self.failure, self.reasons = "", {}
        self._raised.clear()
        self._ahead.clear()
        keys = [] if self._cache is None else sample_keys(sample, cond)
        value = self._fresh(sample, cond) if self._cache is None else self._remembered(sample, cond, keys)
        valid = value.isfinite()
        if not valid.all():
            self._count((~valid).nonzero()[:, 0].tolist(), value)
            value = value.where(valid, torch.nan if self.penalty is None else self.penalty)
        if isinstance(self.reward, Composite):
            answers = self.reward.answers if self._cache is None else self._told.of(keys, valid)
            kept = value.isfinite()  # answers are fewer, where a batch was taken apart
            self.parts = {name: x[kept] for name, x in answers.items() if len(x) == len(kept)}
        return value

    def prefetch(self, sample: Sample, cond: Cond, batch: int) -> None:
        """Lets a reward that can begin with samples of which the next call will ask; nothing is counted yet.

        Args:
            batch: Samples of that call. If they might not fit the budget, nothing is begun.
        """
        fits = self.budget is None or self.calls + batch <= self.budget
        if not fits or not isinstance(self.reward, Prefetching):
            return
        rows = list(range(len(sample)))
        if self._cache is not None:
            first = self._first(sample_keys(sample, cond))
            rows = sorted(row for key, row in first.items() if key not in self._ahead)
            self._ahead |= first.keys()
        if rows:
            index = torch.tensor(rows, device=sample.device)
            self.reward.prefetch(sample[index], copied(take(cond, index)))

    @property
    def round(self) -> int:
        """What messages call the present round; set by the training loop."""
        return self._round

    @round.setter
    def round(self, number: int) -> None:
        self._round = number
        for part in self.reward.guards.values() if isinstance(self.reward, Composite) else ():
            part.round = number

    def _count(self, bad: Sequence[int], value: PerSample) -> None:
        """Takes note of bad samples; raises if there are more than there may be."""
        self.reasons = {row: self._raised.get(row, f"returned {value[row].item()}") for row in bad}
        what = self.reasons[bad[0]]
        if self.on_error == "stop":
            raise self._error(what, bad[0], len(value))
        self.failure = self.last_failure = f"{what} for sample {bad[0]} of {len(value)}"
        if len(bad) > self.max_failures * len(value):
            raise RewardError(
                f"reward '{self.name}' failed for {len(bad)} of {len(value)} samples in round {self.round},"
                f" but at most a share of {self.max_failures:g} may fail: it {self.failure}; mend it, or"
                " allow more with max_failures"
            )
        self.dropped += len(bad)

    @property
    def failures(self) -> dict[str, int]:
        """How many samples had no valid reward, by what became of them."""
        return {"dropped" if self.penalty is None else "penalised": self.dropped}

    def state_dict(self) -> dict[str, Any]:
        """The counters, the remembered answers, and the reward's own state, for a checkpoint."""
        own = learner_of(self.reward)
        return {
            "calls": self.calls,
            "dropped": self.dropped,
            "last_failure": self.last_failure,
            "cache": self._cache,
            "told": self._told.known,
            "reward": None if own is None else own.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls, self.dropped, self._cache = state["calls"], state["dropped"], state["cache"]
        self.last_failure, self._told.known = state.get("last_failure", ""), state.get("told", {})
        own = learner_of(self.reward)
        if (own is None) != (state["reward"] is None):
            saved, now = ("some", "none") if own is None else ("none", "some")
            raise ValueError(
                f"the state of reward '{self.name}' must be as the run saved it, which was {saved}, but got"
                f" {now}; resume with the reward that the run was started with"
            )
        if own is not None:
            own.load_state_dict(state["reward"])

    def _fresh(self, sample: Sample, cond: Cond) -> PerSample:
        return self._checked(Asked(sample, cond, range(len(sample)), len(sample)))

    def _remembered(self, sample: Sample, cond: Cond, keys: Sequence[str]) -> PerSample:
        """Scores each new sample once. What failed is not remembered: it may work the next time."""
        known = {} if self._cache is None else self._cache
        first = self._first(keys)
        fresh: dict[str, float] = {}
        if first:
            rows = sorted(first.values())
            index, new = torch.tensor(rows, device=sample.device), [keys[i] for i in rows]
            value = self._checked(Asked(sample[index], take(cond, index), rows, len(sample), new))
            fresh = dict(zip(new, value.tolist(), strict=True))
        numbers = [known.get(key, fresh.get(key, np.nan)) for key in keys]
        return torch.tensor(numbers, dtype=torch.float32, device=sample.device)

    def _first(self, keys: Sequence[str]) -> dict[str, int]:
        """Where each sample stands first that is not remembered, by its key."""
        known = {} if self._cache is None else self._cache
        return {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}

    def _checked(self, asked: Asked) -> PerSample:
        """One number per sample; NaN or infinite where the reward said so or, on `drop`, failed."""
        value = self._tried(asked)
        if not isinstance(value, BaseException):
            return value
        if self.on_error == "stop":
            raise self._culprit(asked, value) from value
        if len(asked.rows) == 1:
            self._raised[asked.rows[0]] = f"raised {described(value)}"
            return torch.full((1,), torch.nan, device=asked.sample.device)
        each = [self._checked(asked.some(i, i + 1)) for i in range(len(asked.rows))]
        return torch.cat(each)

    def _culprit(self, asked: Asked, error: BaseException) -> RewardError:
        """What to say of a batch that raised: which sample is the first that does so alone, if any does.

        It lies in the first half if that raises, else in the second one, and so on: no answer is paid twice.
        """
        part, alone = asked, len(asked.rows) == 1
        cause = error
        while not alone:
            half = max(len(part.rows) // 2, 1)
            answer = self._tried(part.some(0, half))
            if isinstance(answer, BaseException):
                part, cause, alone = part.some(0, half), answer, half == 1
            elif len(part.rows) == 1:
                what = f"raised {described(error)} on {asked.total} samples, but on none of them alone"
                return self._error(f"{what} as far as they were tried,")
            else:
                part = part.some(half, len(part.rows))
        return self._error(f"raised {described(cause)}", part.rows[0], asked.total)

    def _tried(self, asked: Asked) -> PerSample | BaseException:
        """The reward's answer, or what it raised: also an attempt to exit, but not Ctrl-C."""
        try:
            return self._call(asked)
        except (RewardError, BudgetSpent, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # a library that exits must not end the run
            return error

    def _call(self, asked: Asked) -> PerSample:
        """The answer as one float32 number per sample, or as float64 if it is, with its gradient."""
        count, device = len(asked.sample), asked.sample.device
        if self.budget is not None and self.calls + count > self.budget:
            raise BudgetSpent(
                f"{self.calls} of at most {self.budget} calls of reward '{self.name}' are spent, and the next"
                f" {count} samples do not fit"
            )
        self.calls += count
        answer = self.reward(asked.sample.clone(), copied(asked.cond))
        numbers = numbers_of(answer, device)
        expected = f"one number for each of {count} samples"
        if numbers is None:
            todo = "return the numbers alone" if isinstance(answer, tuple) else "mend the reward"
            raise self._error(f"returned {kind_of(answer)} instead of {expected}", todo=todo)
        if isinstance(answer, list | tuple):
            self._note(answer, asked)
        if numbers.shape != (count,):
            raise self._error(f"returned shape {tuple(numbers.shape)} instead of {expected}")
        dtype = torch.float64 if numbers.dtype == torch.float64 else torch.float32
        numbers = numbers.to(device, dtype, copy=True)  # the reward may use its own again
        if self._cache is not None:
            pairs = zip(asked.keys, numbers.tolist(), strict=True)
            self._cache |= {key: number for key, number in pairs if np.isfinite(number)}
            if isinstance(self.reward, Composite):
                self._told.add(asked.keys, self.reward.answers)
        return numbers

    def _note(self, answer: Sequence[Any], asked: Asked) -> None:
        """Stops at the first sample of a list that has no number, or remembers why it has none."""
        for row, item in zip(asked.rows, answer, strict=False):
            if is_missing(item):
                what = item.reason if isinstance(item, Failure) else f"returned {item}"
                if self.on_error == "stop":
                    raise self._error(what, row, asked.total)
                self._raised[row] = what

    def _error(
        self, what: str, row: int | None = None, total: int = 0, todo: str = "mend the reward"
    ) -> RewardError:
        where = "" if row is None else f" for sample {row} of {total}"
        return RewardError(
            f"reward '{self.name}' {what}{where} in round {self.round}; {todo}"
            + (", or drop such samples with on_error='drop'" if row is not None else "")
        )
