"""Conditions: what each sample of a batch is asked to be."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.shapes import Cond, Index


def take(cond: Cond, index: Index) -> Cond:
    """Selects rows of every condition."""
    return {k: v[index] if isinstance(v, Tensor) else [v[i] for i in index.tolist()] for k, v in cond.items()}


def on_device_of(module: nn.Module, cond: Cond) -> Cond:
    """The conditions where a module's weights are."""
    weight = next(module.parameters(), torch.empty(0))
    return {k: v.to(weight.device) if isinstance(v, Tensor) else v for k, v in cond.items()}


def batch_size(cond: Cond) -> int:
    """The number of samples that a condition asks for."""
    if not cond:
        raise ValueError("a condition came without entries; use unconditional(n) to ask for n samples")
    return len(next(iter(cond.values())))


def unconditional(n: int) -> Cond:
    """The condition of n samples about which nothing is asked."""
    return {"none": torch.zeros(n, dtype=torch.long)}


def repeat(cond: Cond, count: int) -> Cond:
    """Repeats every condition `count` times, side by side."""
    return take(cond, torch.arange(batch_size(cond)).repeat_interleave(count))


def concat(conds: Sequence[Cond]) -> Cond:
    """All conditions, one batch after the other."""
    together: dict[str, Tensor | list[str]] = {}
    for name in conds[0]:
        parts: list[Any] = [cond[name] for cond in conds]
        tensors = isinstance(parts[0], Tensor)
        together[name] = torch.cat(parts) if tensors else [item for part in parts for item in part]
    return together


def deal(cond: Cond, count: int) -> Iterator[Cond]:
    """Conditions in `count` parts, one after the other."""
    batch = batch_size(cond)
    if batch < count:
        raise ValueError(f"a batch of {batch} has no {count} parts; enlarge the batch or take fewer parts")
    for rows in torch.arange(batch).tensor_split(count):
        yield take(cond, rows)


def some_rows(count: int, most: int, device: torch.device | None = None) -> Index:
    """At most so many of the numbers below `count`, drawn at random."""
    return torch.randperm(count, device=device)[:most]


def shuffled(count: int, parts: int, device: torch.device, share: float = 1.0) -> Iterator[Index]:
    """A share of the numbers below `count`, drawn at random and dealt into minibatches."""
    rows = some_rows(count, round(share * count), device)
    if len(rows) < parts:
        raise ValueError(
            f"{len(rows)} rows cannot be dealt into {parts} minibatches; take fewer or enlarge the batch"
        )
    yield from rows.tensor_split(parts)


def context_keys(cond: Cond) -> list[str]:
    """A hash per sample, equal where all conditions are equal."""
    keys = []
    for i in range(batch_size(cond)):
        digest = hashlib.sha256()
        for name, value in cond.items():
            item = value[i]
            digest.update(name.encode() + b"\0")
            digest.update(item.encode() + b"\0" if isinstance(item, str) else as_bytes(item))
        keys.append(digest.hexdigest())
    return keys


def as_bytes(x: Tensor) -> bytes:
    """The numbers of a tensor, bit for bit, in any precision."""
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def context(cond: Cond) -> Index:
    """A small number per sample, equal where all conditions are equal."""
    keys = context_keys(cond)
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])
