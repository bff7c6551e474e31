"""Any callable is a reward. The guard makes sure that what it returns is one."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import as_bytes, context_keys, take
from difftilt.shapes import Cond, PerSample, Sample

Reward = Callable[[Sample, Cond], PerSample]
OnError = Literal["stop", "drop"]


@runtime_checkable
class Stateful(Protocol):
    """What learns during a run, and is saved with it: tensors, numbers, texts, lists and dicts."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any], /) -> Any: ...


class RewardError(ValueError):
    """A reward broke its contract. The message names the reward, the sample and the round."""


class Guard:
    """Checks a reward's answers and counts its calls; nothing invalid is ever turned into a number.

    Args:
        reward: Maps (samples, conditions) to one finite number per sample: a tensor, array or list. If it
            has `state_dict` and `load_state_dict`, what it learns is saved with the run.
        name: What messages call it; the function's own name by default.
        on_error: `stop` raises at the first bad value. `drop` marks bad samples with NaN, which
            `Objective.score` leaves out, and counts them in `dropped`.
        cache: Answer repeated samples from memory. Right only for a deterministic reward without
            gradients whose answer for one sample does not depend on the rest of the batch.

    Attributes:
        calls: Samples scored so far.
        dropped: Samples dropped so far.
        round: What messages call the present round; set by the training loop.
    """

    def __init__(self, reward: Reward, name: str = "", on_error: OnError = "stop", cache: bool = False):
        self.reward, self.on_error = reward, on_error
        self.name = name or getattr(reward, "__name__", type(reward).__name__)
        self.calls, self.dropped, self.round = 0, 0, 0
        self._cache: dict[str, float] | None = {} if cache else None

    def __call__(self, sample: Sample, cond: Cond) -> PerSample:
        value = self._checked(sample, cond) if self._cache is None else self._remembered(sample, cond)
        bad = (~value.isfinite()).nonzero()[:, 0].tolist()
        if bad and self.on_error == "stop":
            raise self._error(f"returned {value[bad[0]].item()}", bad[0], len(value))
        self.dropped += len(bad)
        return value.where(value.isfinite(), torch.nan) if bad else value

    def state_dict(self) -> dict[str, Any]:
        """The counters, the remembered answers, and the reward's own state, for a checkpoint.

        A module without trainable parameters is taken for a fixed one, which has no state.
        """
        own = self._learner()
        return {
            "calls": self.calls,
            "dropped": self.dropped,
            "cache": self._cache,
            "reward": None if own is None else own.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls, self.dropped, self._cache = state["calls"], state["dropped"], state["cache"]
        own = self._learner()
        if (own is None) != (state["reward"] is None):
            saved, now = ("some", "none") if own is None else ("none", "some")
            raise ValueError(
                f"the state of reward '{self.name}' must be as the run saved it, which was {saved}, but got"
                f" {now}; resume with the reward that the run was started with"
            )
        if own is not None:
            own.load_state_dict(state["reward"])

    def _learner(self) -> Stateful | None:
        """The reward, if it has a state that a run may change."""
        frozen = isinstance(self.reward, nn.Module) and not any(
            p.requires_grad for p in self.reward.parameters()
        )
        return self.reward if isinstance(self.reward, Stateful) and not frozen else None

    def _remembered(self, sample: Sample, cond: Cond) -> PerSample:
        """Scores each new sample once. What failed is not remembered: it may work the next time."""
        known = {} if self._cache is None else self._cache
        keys = _keys(sample, cond)
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        fresh: dict[str, float] = {}
        if first:
            rows = torch.tensor(sorted(first.values()), device=sample.device)
            value = self._checked(sample[rows], take(cond, rows), rows.tolist(), len(sample))
            fresh = dict(zip([keys[i] for i in rows.tolist()], value.tolist(), strict=True))
            known |= {key: number for key, number in fresh.items() if np.isfinite(number)}
        numbers = [known.get(key, fresh.get(key, np.nan)) for key in keys]
        return torch.tensor(numbers, dtype=torch.float32, device=sample.device)

    def _checked(
        self, sample: Sample, cond: Cond, rows: list[int] | None = None, total: int = 0
    ) -> PerSample:
        """One number per sample; NaN or infinite where the reward said so or, on `drop`, failed.

        Args:
            rows: Which rows of the batch of `total` these samples are; all by default.
        """
        rows, total = (rows, total) if rows is not None else (list(range(len(sample))), len(sample))
        try:
            return self._call(sample, cond, rows, total)
        except RewardError:
            raise
        except Exception as error:
            return self._one_by_one(sample, cond, rows, total, error)

    def _one_by_one(
        self, sample: Sample, cond: Cond, rows: list[int], total: int, error: Exception
    ) -> PerSample:
        """Scores a batch that raised sample by sample: to drop the guilty ones, or to name the first."""
        values = [torch.empty(0, device=sample.device)]
        for i, row in enumerate(rows):
            only = torch.tensor([i], device=sample.device)
            try:
                values.append(self._call(sample[only], take(cond, only), [row], total))
            except RewardError:
                raise
            except Exception as cause:
                if self.on_error == "stop":
                    raise self._error(f"raised {_describe(cause)}", row, total) from cause
                values.append(torch.full((1,), torch.nan, device=sample.device))
        if self.on_error == "stop":
            what = f"raised {_describe(error)} on {total} samples, but on none of them alone,"
            raise self._error(what) from error
        return torch.cat(values)

    def _call(self, sample: Sample, cond: Cond, rows: list[int], total: int) -> PerSample:
        """The answer as one float32 number per sample, or as float64 if it is, with its gradient."""
        self.calls += len(sample)
        answer = self.reward(sample, cond)
        if isinstance(answer, list | tuple):
            for row, item in zip(rows, answer, strict=False):
                if item is None and self.on_error == "stop":
                    raise self._error("returned None", row, total)
            answer = _joined([np.nan if item is None else item for item in answer])
        if isinstance(answer, np.ndarray) and answer.dtype.kind in "fiub":
            answer = torch.as_tensor(answer.astype(np.float64 if answer.dtype == np.float64 else np.float32))
        expected = f"one number for each of {len(sample)} samples"
        if not isinstance(answer, Tensor) or answer.is_complex():
            raise self._error(f"returned {_kind(answer)} instead of {expected}")
        if answer.shape != (len(sample),):
            raise self._error(f"returned shape {tuple(answer.shape)} instead of {expected}")
        return answer.to(sample.device, torch.float64 if answer.dtype == torch.float64 else torch.float32)

    def _error(self, what: str, row: int | None = None, total: int = 0) -> RewardError:
        where = "" if row is None else f" for sample {row} of {total}"
        return RewardError(
            f"reward '{self.name}' {what}{where} in round {self.round}; mend the reward"
            + (", or drop such samples with on_error='drop'" if row is not None else "")
        )


def _joined(items: Sequence[Any]) -> Any:
    """A list of numbers as one tensor; float32 unless it holds tensors, whose gradients stay."""
    if items and any(isinstance(item, Tensor) for item in items):
        shapes = {item.shape for item in items if isinstance(item, Tensor)}
        return torch.stack([torch.as_tensor(item) for item in items]) if len(shapes) == 1 else items
    try:
        array = np.asarray(items)
    except ValueError:  # ragged
        return items
    return array.astype(np.float32) if array.dtype.kind in "fiub" else items


def _kind(answer: Any) -> str:
    """What came instead of numbers, in a word or two."""
    if answer is None:
        return "None"
    if isinstance(answer, Tensor | np.ndarray):
        return f"numbers of type {answer.dtype}"
    if isinstance(answer, list | tuple) and answer:
        return f"a {type(answer).__name__} of {type(answer[0]).__name__}"
    return f"a {type(answer).__name__}"


def _describe(error: Exception) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"


def _keys(sample: Sample, cond: Cond) -> list[str]:
    """A hash of each sample and its conditions."""
    keys = zip(sample, context_keys(cond), strict=True)
    return [hashlib.sha256(as_bytes(row)).hexdigest() + key for row, key in keys]
