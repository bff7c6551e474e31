"""What `state_dict` functions return, as tensors and JSON: nothing has to be pickled."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from difftilt.training.sharding import part_of

# Nested mappings and lists of tensors, arrays, numbers, texts and None
Tree = Any
_MARKS = {"__tensor__", "__array__", "__items__"}  # which a mapping of the user's may not be taken for


@dataclass(frozen=True)
class Packed:
    """A copy of a tree, on the CPU, cut in two.

    Args:
        plain: The tree as JSON, with names where tensors were; None if the tree was a mapping of tensors.
        tensors: By their names.
        parts: Of tensors that are sharded: what this process holds of them, by rows.
    """

    plain: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Tensor] = field(default_factory=dict)


def pack(tree: Tree) -> Packed:
    """Copies a tree, so that it stays what it is while training goes on.

    Raises:
        ValueError: If something in it is neither a tensor nor JSON.
    """
    found = Packed(None)
    plain = _pack(tree, "", found)
    flat = isinstance(tree, Mapping) and all(isinstance(value, Tensor) for value in tree.values())
    return replace(found, plain=None if flat else plain)


def unpack(packed: Packed) -> Tree:
    """The tree; tuples have become lists, and so have arrays of anything but numbers."""
    return dict(packed.tensors) if packed.plain is None else _unpack(packed.plain, packed.tensors)


def _pack(tree: Tree, path: str, found: Packed) -> Any:
    if isinstance(tree, Tensor):
        part = part_of(tree)
        kept, x = (found.tensors, tree) if part is None else (found.parts, part)
        kept[path] = x.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"__tensor__": path}
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "fiub":
        return {"__array__": _pack(torch.from_numpy(tree.copy()), path, found)}
    if isinstance(tree, np.generic):
        tree = tree.item()
    inner = f"{path}." if path else ""
    if isinstance(tree, Mapping):
        items = {key: _pack(value, f"{inner}{key}", found) for key, value in tree.items()}
        if all(isinstance(key, str) for key in items) and not items.keys() & _MARKS:
            return items
        return {"__items__": [[key, value] for key, value in items.items()]}
    if isinstance(tree, list | tuple | np.ndarray):
        return [_pack(value, f"{inner}{i}", found) for i, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise ValueError(
        f"'{path}' in a state is of type {type(tree).__name__}, which a checkpoint cannot hold;"
        " hold tensors, arrays, numbers, texts, lists and dicts only"
    )


def _unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Tree:
    if isinstance(plain, list):
        return [_unpack(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if "__tensor__" in plain:
        return tensors[plain["__tensor__"]]
    if "__array__" in plain:
        return _unpack(plain["__array__"], tensors).numpy()
    items = plain.get("__items__", plain.items())
    return {key: _unpack(value, tensors) for key, value in items}
