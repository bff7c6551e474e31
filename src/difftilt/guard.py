"""Any callable is a reward. The guard makes sure that what it returns is one."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from difftilt.policy import context_keys, take
from difftilt.shapes import Cond, PerSample, State

Reward = Callable[[State, Cond], PerSample]
OnError = Literal["stop", "drop"]


class RewardError(ValueError):
    """A reward broke its contract. The message names the reward, the sample and the round."""


class Guard:
    """Checks a reward's answers and counts its calls; nothing invalid is ever turned into a number.

    Args:
        reward: Maps (samples, conditions) to one finite number per sample: a tensor, array or list.
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

    def __call__(self, sample: State, cond: Cond) -> PerSample:
        if self._cache is None:
            return self._fresh(sample, cond)
        keys = _keys(sample, cond)
        first: dict[str, int] = {}
        for i, key in enumerate(keys):
            if key not in self._cache:
                first.setdefault(key, i)
        if first:
            rows = torch.tensor(list(first.values()), device=sample.device)
            self._cache |= zip(first, self._fresh(sample[rows], take(cond, rows)).tolist(), strict=True)
        return torch.tensor([self._cache[key] for key in keys], device=sample.device)

    def state_dict(self) -> dict[str, Any]:
        """The counters and the remembered answers, for a checkpoint (plain JSON)."""
        return {"calls": self.calls, "dropped": self.dropped, "cache": self._cache}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls, self.dropped, self._cache = state["calls"], state["dropped"], state["cache"]

    def _fresh(self, sample: State, cond: Cond) -> PerSample:
        try:
            value = self._call(sample, cond)
        except Exception as error:
            return self._failed(sample, cond, error)
        bad = (~value.isfinite()).nonzero()[:, 0].tolist()
        if bad and self.on_error == "stop":
            raise self._error(f"returned {value[bad[0]].item()}", bad[0], len(value))
        self.dropped += len(bad)
        return value.where(value.isfinite(), torch.nan) if bad else value

    def _failed(self, sample: State, cond: Cond, error: Exception) -> PerSample:
        """Scores the batch again sample by sample: to drop the guilty ones, or to name the first."""
        if isinstance(error, RewardError) or len(sample) == 0:
            raise error
        values = []
        for i in range(len(sample)):
            row = torch.tensor([i], device=sample.device)
            try:
                values.append(self._call(sample[row], take(cond, row)))
            except RewardError:
                raise
            except Exception as cause:
                if self.on_error == "stop":
                    raise self._error(f"raised {_describe(cause)}", i, len(sample)) from cause
                values.append(torch.full((1,), torch.nan, device=sample.device))
        if self.on_error == "stop":
            raise RewardError(
                f"reward '{self.name}' raised {_describe(error)} on the {len(sample)} samples of round"
                f" {self.round}, but on none of them alone; nothing was learned from this round"
            ) from error
        value = torch.cat(values)
        self.dropped += int((~value.isfinite()).sum())
        return value.where(value.isfinite(), torch.nan)

    def _call(self, sample: State, cond: Cond) -> PerSample:
        self.calls += len(sample)
        return self._as_tensor(self.reward(sample, cond), sample)

    def _as_tensor(self, answer: Any, sample: State) -> PerSample:
        """The answer as one float32 number per sample, on the samples' device, with its gradient."""
        expected = f"one number for each of {len(sample)} samples"
        if isinstance(answer, Sequence) and not isinstance(answer, str):
            for i, item in enumerate(answer):
                if item is None and self.on_error == "stop":
                    raise self._error("returned None", i, len(answer))
            answer = [float("nan") if item is None else item for item in answer]
        if not isinstance(answer, Tensor):
            try:
                answer = torch.as_tensor(np.asarray(answer, dtype=np.float32))
            except (TypeError, ValueError):
                answer = None if answer is None else type(answer)
        if not isinstance(answer, Tensor) or answer.is_complex():
            came = "None" if answer is None else getattr(answer, "__name__", "complex numbers")
            raise self._error(f"returned {came} instead of {expected}")
        if answer.shape != (len(sample),):
            raise self._error(f"returned shape {tuple(answer.shape)} instead of {expected}")
        return answer.to(sample.device, torch.float64 if answer.dtype == torch.float64 else torch.float32)

    def _error(self, what: str, index: int | None = None, count: int = 0) -> RewardError:
        where = "" if index is None else f" for sample {index} of {count}"
        return RewardError(
            f"reward '{self.name}' {what}{where} in round {self.round}; mend the reward"
            + (", or drop such samples with on_error='drop'" if index is not None else "")
        )


def _describe(error: Exception) -> str:
    return f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"


def _keys(sample: State, cond: Cond) -> list[str]:
    """A hash of each sample and its conditions."""
    rows = sample.detach().cpu().contiguous()
    keys = zip(rows, context_keys(cond), strict=True)
    return [hashlib.sha256(row.numpy().tobytes()).hexdigest() + key for row, key in keys]
