"""Conditions: what each sample of a batch is asked to be, and what else is known of it."""

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence, Sized
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from difftilt.shapes import Cond, Index, Sample

_PLAIN = (str, bytes, bool, int, float, complex, type(None), np.generic)


def take(cond: Cond, index: Index) -> Cond:
    """Selects rows of every condition."""
    return {name: _rows(value, index) for name, value in cond.items()}


def on_device_of(module: nn.Module, cond: Cond) -> Cond:
    """The conditions with their tensors where a module's weights are."""
    batch_size(cond)
    weight = next(module.parameters(), torch.empty(0))
    return {k: v.to(weight.device) if isinstance(v, Tensor) else v for k, v in cond.items()}


def batch_size(cond: Cond) -> int:
    """The number of samples that a condition asks for.

    Raises:
        ValueError: If there is no entry, or if one does not hold something for each sample.
    """
    if not cond:
        raise ValueError("got a condition without entries; use unconditional(n) to ask for n samples")
    first, *others = cond
    size = _length(first, cond[first])
    for name in others:
        if (length := _length(name, cond[name])) != size:
            raise ValueError(
                f"got {size} entries in condition '{first}', but {length} in '{name}'; give each sample one"
                " entry of every condition"
            )
    return size


def unconditional(n: int) -> Cond:
    """The condition of n samples about which nothing is asked."""
    return {"none": torch.zeros(n, dtype=torch.long)}


def repeat(cond: Cond, count: int) -> Cond:
    """Repeats every condition `count` times, side by side."""
    return take(cond, torch.arange(batch_size(cond)).repeat_interleave(count))


def concat(conds: Sequence[Cond]) -> Cond:
    """All conditions, one batch after the other.

    Raises:
        ValueError: If the batches have different conditions.
    """
    names = set(conds[0])
    for cond in conds:
        if set(cond) != names:
            raise ValueError(
                f"got batches with conditions {sorted(names)} and {sorted(cond)}, which cannot be joined;"
                " give every batch the same conditions"
            )
    return {name: _joined([cond[name] for cond in conds]) for name in conds[0]}


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


def shuffled(count: int, parts: int, device: torch.device, *, again: bool = False) -> Iterator[Index]:
    """The numbers below `count`, shuffled and dealt into minibatches.

    Args:
        again: Where there are fewer than parts, some come again: samples may have been dropped, but every
            process takes as many steps.
    """
    rows = some_rows(count, count, device)
    if len(rows) < parts and again:
        rows = rows.repeat(-(-parts // count))[:parts]
    if len(rows) < parts:
        raise ValueError(
            f"{len(rows)} rows cannot be dealt into {parts} minibatches; take fewer or enlarge the batch"
        )
    yield from rows.tensor_split(parts)


def deal_rows(
    decisions: int, batch: int, count: int, share: float = 1.0, *, device: torch.device
) -> Iterator[Index]:
    """Shuffles the rows of a (decision, chain) table and deals a share of them into `count` parts.

    Every part holds a row that is no draw of x_T, which alone would have no gradient where x_T is not tuned.

    Raises:
        ValueError: If there are too few rows for that.
    """
    order, later = torch.randperm(decisions * batch, device=device), (decisions - 1) * batch
    taken = round(share * len(order))
    if min(taken, later) < count:
        rows = f"{taken} rows" if taken < count else f"{later} rows after x_T"
        raise ValueError(f"{rows} cannot be dealt into {count} minibatches; take fewer or enlarge the batch")
    parts, rest = order[:taken].tensor_split(count), order[taken:]
    for part in parts:
        if (part < batch).all():  # exchange a row with whoever has the most to spare
            donor = max([rest, *parts], key=lambda rows: int((rows >= batch).sum()) - (rows is not rest))
            place = (donor >= batch).nonzero()[-1, 0]
            part[0], donor[place] = donor[place].clone(), part[0].clone()
    yield from parts


def context_keys(cond: Cond, lasting: bool = False) -> list[str]:
    """A hash per sample, equal where all conditions are equal.

    Objects that do not say what they hold are equal to themselves only, as long as they live.

    Args:
        lasting: Whether keys are to be compared with those of other rounds or runs.

    Raises:
        ValueError: If the keys must last, but a condition holds an object whose content is unknown.
    """
    names = [name.encode() + b"\0" for name in cond]
    columns = [_contents(value, name if lasting else None) for name, value in cond.items()]
    batch_size(cond)
    rows = list(zip(*columns, strict=True))
    known = {}
    for contents in dict.fromkeys(rows):  # of one context there may be thousands
        digest = hashlib.sha256()
        for name, content in zip(names, contents, strict=True):
            digest.update(name + content)
        known[contents] = digest.hexdigest()
    return [known[contents] for contents in rows]


def as_bytes(x: Tensor) -> bytes:
    """The numbers of a tensor, bit for bit, in any precision."""
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def rows_as_bytes(x: Tensor) -> list[bytes]:
    """The same of each row."""
    whole, rows = as_bytes(x), len(x)
    width = len(whole) // max(rows, 1)
    return [whole[i * width : (i + 1) * width] for i in range(rows)]


def context(cond: Cond) -> Index:
    """A small number per sample, equal where all conditions are equal."""
    keys = context_keys(cond)
    return numbered(keys, keys)


def numbered(keys: Sequence[str], among: Sequence[str]) -> Index:
    """Where each key comes among those that differ."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(among))}
    return torch.tensor([numbers[key] for key in keys])


def copied(cond: Cond) -> Cond:
    """The same entries in tensors, arrays and lists of their own: to change them changes nothing else.

    Containers inside of entries are copied too, other objects are shared.
    """
    return {name: _copied(_entries(value)) for name, value in cond.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return np.frompyfunc(_copied, 1, 1)(value) if value.dtype == object else value.copy()
    if isinstance(value, dict):
        twin = copy.copy(value)  # which keeps what kind of dict it is
        twin.update({key: _copied(item) for key, item in value.items()})
        return twin
    if type(value) in (list, set, tuple):
        return type(value)(_copied(item) for item in value)
    return value


def _rows(value: Any, index: Index) -> Any:
    if isinstance(value, Tensor):
        return value[index]
    if isinstance(value, np.ndarray):
        return value[index.cpu().numpy()]
    items = _entries(value)
    return [items[i] for i in index.tolist()]


def _entries(value: Any) -> Any:
    """A tensor, array or list of entries by place; a column of a table counts them by its labels."""
    return value if isinstance(value, Tensor | np.ndarray | list) else list(value)


def _length(name: str, value: Any) -> int:
    """Entries of one condition."""
    whole = isinstance(value, str | bytes | Mapping | AbstractSet) or not isinstance(value, Sized)
    if whole or (isinstance(value, Tensor | np.ndarray) and not value.ndim):
        raise ValueError(
            f"got a {type(value).__name__} as condition '{name}', which does not hold one entry per sample;"
            " give a tensor, an array or a list"
        )
    return len(value)


def _joined(parts: Sequence[Any]) -> Any:
    """One condition of several batches."""
    if all(isinstance(part, Tensor) for part in parts):
        return torch.cat(list(parts))
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [item for part in parts for item in _entries(part)]


def _contents(value: Any, lasting: str | None) -> list[bytes]:
    """What makes entries of a condition equal, as bytes."""
    if isinstance(value, Tensor):
        return rows_as_bytes(value)
    return [_content(item, lasting) for item in _entries(value)]


def _content(item: Any, lasting: str | None) -> bytes:
    """What makes two entries equal, as bytes.

    Args:
        lasting: The name of the condition, if objects of unknown content are to be refused.
    """
    if isinstance(item, str):
        return item.encode("utf-8", "surrogatepass") + b"\0"
    if isinstance(item, Tensor):
        return as_bytes(item)
    if isinstance(item, np.ndarray) and item.dtype != object:
        return f"{item.dtype}{item.shape}".encode() + item.tobytes()
    if isinstance(item, _PLAIN):
        return b"\0" + repr(item.item() if isinstance(item, np.generic) else item).encode() + b"\0"
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = [type(item).__qualname__, *((f.name, getattr(item, f.name)) for f in dataclasses.fields(item))]
    if isinstance(item, Mapping):
        parts = sorted(_digest(key, lasting) + _digest(inner, lasting) for key, inner in item.items())
        return b"mapping" + b"".join(parts)
    if isinstance(item, AbstractSet):
        return b"set" + b"".join(sorted(_digest(inner, lasting) for inner in item))
    if isinstance(item, list | tuple | np.ndarray):
        return b"list" + b"".join(_digest(inner, lasting) for inner in item)
    return _described(item, lasting)


def _described(item: Any, lasting: str | None) -> bytes:
    """The content of an object as its array or text shows it, or else which object it is."""
    kind = type(item).__qualname__
    if any(getattr(item, name, None) is not None for name in ("__array__", "__array_interface__")):
        return kind.encode() + _content(np.asarray(item), lasting)
    text = repr(item)
    if f"{id(item):x}" not in text.lower() and "..." not in text:
        return f"{kind} {text}".encode("utf-8", "surrogatepass")
    if lasting is not None:
        raise ValueError(
            f"got a {kind} of unknown content in condition '{lasting}', which cannot be recognised in later"
            " rounds; give it a __repr__ that shows the content, or use text, numbers, arrays, lists or dicts"
        )
    return f"{kind} at {id(item)}".encode()


def _digest(item: Any, lasting: str | None) -> bytes:
    """A hash of a part of an entry, whose kind its place does not tell."""
    kind = "text" if isinstance(item, str) else ""
    if isinstance(item, Tensor):
        kind = f"{item.dtype}{item.shape}"
    return hashlib.sha256(kind.encode() + _content(item, lasting)).digest()


def sample_keys(sample: Sample, cond: Cond) -> list[str]:
    """A hash of each sample and its conditions."""
    pairs = zip(rows_as_bytes(sample), context_keys(cond, lasting=True), strict=True)
    return [hashlib.sha256(row).hexdigest() + key for row, key in pairs]
