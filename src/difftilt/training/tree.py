"""What `state_dict` functions return, as tensors and JSON: nothing has to be pickled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Nested mappings and lists of tensors, arrays, numbers, texts and None
Tree = Any
_MARKS = {"__tensor__", "__array__", "__items__"}  # which a mapping of the user's may not be taken for


@dataclass(frozen=True)
class Packed:
    """A copy of a tree, on the CPU, cut in two.

    Args:
        plain: The tree as JSON, with names where tensors were; None if the tree was a mapping of tensors.
        tensors: By their names.
    """

    plain: Any
    tensors: dict[str, Tensor] = field(default_factory=dict)


def pack(tree: Tree) -> Packed:
    """Copies a tree, so that it stays what it is while training goes on.

    Raises:
        ValueError: If something in it is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    plain = _pack(tree, "", tensors)
    flat = isinstance(tree, Mapping) and all(isinstance(value, Tensor) for value in tree.values())
    return Packed(None if flat else plain, tensors)


def unpack(packed: Packed) -> Tree:
    """The tree; tuples have become lists, and so have arrays of anything but numbers."""
    return dict(packed.tensors) if packed.plain is None else _unpack(packed.plain, packed.tensors)


def _pack(tree: Tree, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, Tensor):
        tensors[path] = tree.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"__tensor__": path}
    if isinstance(tree, np.ndarray) and tree.dtype.kind in "fiub":
        return {"__array__": _pack(torch.from_numpy(tree.copy()), path, tensors)}
    if isinstance(tree, np.generic):
        tree = tree.item()
    inner = f"{path}." if path else ""
    if isinstance(tree, Mapping):
        items = {key: _pack(value, f"{inner}{key}", tensors) for key, value in tree.items()}
        if all(isinstance(key, str) for key in items) and not items.keys() & _MARKS:
            return items
        return {"__items__": [[key, value] for key, value in items.items()]}
    if isinstance(tree, list | tuple | np.ndarray):
        return [_pack(value, f"{inner}{i}", tensors) for i, value in enumerate(tree)]
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
