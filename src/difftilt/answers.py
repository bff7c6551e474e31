"""What a reward takes, how alike these samples are, and what it answers: numbers, or why there is none."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.conditions import take
from difftilt.shapes import Cond, Index, Mask, PerSample, Sample, Scalar, Stateful

MOST_TOKENS = 1024  # beyond which integers are numbers
COPIED = 2**22  # numbers that are copied at a time, as batches of images are large


class RewardError(ValueError):
    """A reward broke its contract. The message names the reward, the sample and the round."""


class BudgetSpent(RuntimeError):  # noqa: N818  (not an error: what was paid for has been used)
    """The next samples would cost more calls than a reward may be given."""


@runtime_checkable
class Prefetching(Protocol):
    """A reward that can begin with samples before it is asked about them."""

    def prefetch(self, sample: Sample, cond: Cond, /) -> None:
        """Begins with samples of which the next call will ask, and returns at once."""
        ...


class Filter(Stateful, Protocol):
    """What prices samples by those before them, and remembers them."""

    def __call__(self, sample: Sample) -> PerSample:
        """The price of each sample in nats, by what was seen before this batch."""
        ...


@dataclass(frozen=True)
class Failure:
    """Stands in a list of rewards where a sample has none, and says why, as in `raised OSError (busy)`."""

    reason: str


@dataclass(frozen=True)
class Asked:
    """Samples that a reward is asked about.

    Args:
        rows: Which rows of the batch they are.
        total: The size of that batch.
        keys: What the cache calls them; none without a cache.
    """

    sample: Sample
    cond: Cond
    rows: Sequence[int]
    total: int
    keys: Sequence[str] = ()

    def some(self, start: int, stop: int) -> "Asked":
        """Those from one place to another."""
        index = torch.arange(start, stop, device=self.sample.device)
        part = (self.sample[index], take(self.cond, index), self.rows[start:stop])
        return Asked(*part, self.total, self.keys[start:stop])


class Told:
    """What the parts of a reward said of samples, for those that are remembered.

    Attributes:
        known: By the sample's key, and by the part's name.
    """

    def __init__(self):
        self.known: dict[str, dict[str, float]] = {}

    def add(self, keys: Sequence[str], answers: Mapping[str, PerSample]) -> None:
        """Remembers the answers to one call."""
        said = {name: x.tolist() for name, x in answers.items()}
        for row, key in enumerate(keys):
            self.known[key] = {name: column[row] for name, column in said.items()}

    def of(self, keys: Sequence[str], valid: Mask) -> dict[str, PerSample]:
        """The answers, NaN where a part gave none; nothing where they are not known of all valid samples."""
        told = [self.known.get(key) for key in keys]
        if any(each is None and ok for each, ok in zip(told, valid.tolist(), strict=True)):
            return {}
        names = dict.fromkeys(name for each in told for name in each or {})
        rows = {name: [(each or {}).get(name, math.nan) for each in told] for name in names}
        return {
            name: torch.tensor(row, dtype=torch.float32, device=valid.device) for name, row in rows.items()
        }


def numbers_of(answer: Any, device: torch.device) -> Tensor | None:
    """An answer in any container as a tensor, whose gradient stays; None if it holds no real numbers."""
    if isinstance(answer, list | tuple):
        return _listed(answer, device)
    if isinstance(answer, Tensor):
        return None if answer.is_complex() or answer.layout != torch.strided else answer
    if isinstance(answer, np.ma.MaskedArray):
        return None
    if not isinstance(answer, np.generic) and getattr(answer, "__array__", None) is not None:
        array = np.asarray(answer)
        return _listed(array.tolist(), device) if array.dtype == object and array.ndim else _real(array)
    return None


def _listed(items: Sequence[Any], device: torch.device) -> Tensor | None:
    """A list of numbers as one tensor; float32 unless it holds tensors, whose gradients stay."""
    items = [np.nan if is_missing(item) else item for item in items]
    if any(isinstance(item, Tensor) for item in items):
        if not all(isinstance(item, Tensor | int | float | np.number) for item in items):
            return None
        shapes = {item.shape for item in items if isinstance(item, Tensor)}
        if len(shapes) != 1 or any(item.is_complex() for item in items if isinstance(item, Tensor)):
            return None
        return torch.stack([torch.as_tensor(item, device=device) for item in items])
    try:
        array = np.asarray(items)
    except ValueError:  # ragged
        return None
    return _real(array.astype(np.float32)) if array.dtype.kind in "fiub" else None


def _real(array: Any) -> Tensor | None:
    if array.dtype.kind not in "fiub":
        return None
    wide = array.dtype.kind == "f" and array.dtype.itemsize >= 8
    return torch.as_tensor(array.astype(np.float64 if wide else np.float32))


def is_missing(item: Any) -> bool:
    """Whether an item stands for no number: None, a failure, a masked cell, an empty cell of a table."""
    return (
        item is None or item is np.ma.masked or isinstance(item, Failure) or type(item).__name__ == "NAType"
    )


def item_of(number: float, said: Any) -> float | Failure:
    """A number if it is finite, else why it is none.

    Args:
        said: What the reward put in its place, if it answered with a list.
    """
    if isinstance(said, Failure):
        return said
    return number if np.isfinite(number) else Failure(f"returned {said if is_missing(said) else number}")


def learner_of(reward: Any) -> Stateful | None:
    """A reward, if it has a state that a run may change.

    A module without trainable parameters is taken for a fixed one, which has no state.
    """
    frozen = isinstance(reward, nn.Module) and not any(p.requires_grad for p in reward.parameters())
    return reward if isinstance(reward, Stateful) and not frozen else None


def kind_of(answer: Any) -> str:
    """What came instead of numbers, in a word or two."""
    if answer is None:
        return "None"
    kind = type(answer).__name__
    if isinstance(answer, np.ma.MaskedArray):
        return f"a {kind}, in which numbers may be missing,"
    if isinstance(answer, Tensor) and answer.layout != torch.strided:
        return f"a tensor of layout {answer.layout}"
    if isinstance(answer, Tensor | np.ndarray):
        return f"numbers of type {answer.dtype}"
    if isinstance(answer, list | tuple) and answer:
        types = [type(item).__name__ for item in answer]
        inside = types[0] if len(set(types)) == 1 or len(types) > 4 else f"({', '.join(types)})"
        return f"a {kind} of {inside}"
    return f"a {kind}"


def described(error: BaseException) -> str:
    """An exception in a few words, as in `OSError (busy)`."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # of a class that cannot say what it means
        text = ""
    return f"{type(error).__name__} ({text[:200]})"


def check_arguments(reward: Callable[..., Any], name: str) -> None:
    """Raises RewardError unless a reward can be called with samples and conditions."""
    try:
        signature = inspect.signature(reward.forward if isinstance(reward, nn.Module) else reward)
    except ValueError:  # some functions written in C do not say
        return
    except TypeError as error:
        raise RewardError(
            f"got a {type(reward).__name__} as a reward; give a function of (samples, conditions)"
        ) from error
    try:
        signature.bind(None, None)
    except TypeError as error:
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [
            p.name for p in signature.parameters.values() if p.kind not in kinds and p.default is p.empty
        ]
        raise RewardError(
            f"reward '{name}' got 2 arguments, samples and conditions, but takes {len(needed)}"
            f" ({', '.join(needed)}); make it a function of (samples, conditions), and put what else is known"
            " of each sample into the conditions"
        ) from error


def variance(sample: Sample, weight: PerSample | None = None) -> Scalar:
    """The total variance of samples, unbiased; of tokens, of their indicators. Collapse drives it to 0.

    Args:
        weight: Of each sample, of sum 1; all alike by default.
    """
    tokens = not sample.is_floating_point() and int(sample.min()) >= 0 and int(sample.max()) < MOST_TOKENS
    x = (F.one_hot(sample.long()) if tokens else sample).flatten(1)
    x = x if x.is_floating_point() else x.double()
    weight = x.new_full((len(x),), 1 / len(x), dtype=torch.float64) if weight is None else weight.double()
    mean = weight.to(x) @ x
    parts = x.split(max(1, COPIED // max(len(mean), 1)))
    away = torch.cat([(part - mean).square().sum(1, dtype=torch.float64) for part in parts])
    return weight @ away / (1 - weight.square().sum())


def attainable(reward: PerSample, log_ratio: PerSample, alpha: float, context: Index) -> Scalar:
    """The largest J, as samples of any policy tell: alpha log E_pre[exp(r / alpha)], context by context.

    alpha log mean exp(r / alpha - log_ratio), which is too small on average, and by c nats too large with a
    probability of exp(-c) at most (Markov's inequality).

    Args:
        log_ratio: log p - log p_pre of the chains.
        context: A number per sample, equal where conditions are.
    """
    y = reward.double().cpu() / alpha - log_ratio.double().cpu()
    groups = [y[context == number] for number in context.unique()]
    found = [len(group) * (group.logsumexp(0) - math.log(len(group))) for group in groups]
    return (alpha * torch.stack(found).sum() / len(y)).to(reward.device)


def repeats(sample: Sample) -> dict[str, Scalar]:
    """The share of samples that are distinct, if they are no real numbers."""
    if sample.is_floating_point():
        return {}
    count = len(sample.flatten(1).unique(dim=0))
    return {"distinct": torch.tensor(count / len(sample), device=sample.device)}
