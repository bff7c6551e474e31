"""Whether a value is what an annotation says: for values that come from a file, which nobody has checked."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_WORDS = {
    type(None): "null",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    list: "a list",
    tuple: "a list",
    dict: "an object",
}


def misfit(value: Any, hint: Any, name: str = "") -> str | None:
    """Where a value is not what an annotation says, as a clause such as `gold.x is a list, but a number is
    expected`; None if it fits.

    JSON's lists fit tuples and its whole numbers fit float. Ranges are another affair: see `check_value`.

    Args:
        hint: Of the built-in types, Literal, Annotated, unions, lists, tuples, mappings, TypedDicts and
            dataclasses; any other class by isinstance.
    """
    hint = _bare(hint)
    if hint is Any or hint is object:
        return None
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        found = [misfit(value, option, name) for option in inner]
        deeper = [
            clause for option, clause in zip(inner, found, strict=True) if clause and _shape(value, option)
        ]
        return None if None in found else (deeper[0] if len(deeper) == 1 else _clause(value, hint, name))
    if origin is typing.Literal:
        return (
            None if any(value == x and type(value) is type(x) for x in inner) else _clause(value, hint, name)
        )
    if not _shape(value, hint):
        return _clause(value, hint, name)
    for key, item, expected in _items(value, hint, origin, inner):
        if wrong := misfit(item, expected, f"{name}.{key}" if name else str(key)):
            return wrong
    return None


def _items(value: Any, hint: Any, origin: Any, inner: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
    """The name, the value and the annotation of what stands within a value."""
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        missing = [(key, None, hints[key]) for key in sorted(hint.__required_keys__ - value.keys())]
        return missing + [(key, value[key], hints[key]) for key in value if key in hints]
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        return [(f.name, getattr(value, f.name), hints[f.name]) for f in dataclasses.fields(hint)]
    if origin in (dict, Mapping):
        return [(key, item, inner[1]) for key, item in value.items()] if inner else []
    if origin is tuple and Ellipsis not in inner:
        return [(i, item, kind) for i, (item, kind) in enumerate(zip(value, inner, strict=True))]
    if origin in (list, tuple, Sequence):
        return [(i, item, inner[0]) for i, item in enumerate(value)] if inner else []
    return []


def _shape(value: Any, hint: Any) -> bool:
    """Whether a value is of the outermost kind that an annotation names."""
    hint = _bare(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return value is None
    if hint is float or hint is int:
        kinds = (int, float) if hint is float else int
        return isinstance(value, kinds) and not isinstance(value, bool)
    if typing.is_typeddict(hint) or origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if origin is tuple and Ellipsis not in inner:
        return isinstance(value, list | tuple) and len(value) == len(inner)
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple)
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True


def _bare(hint: Any) -> Any:
    while typing.get_origin(hint) in (typing.Annotated, typing.Required, typing.NotRequired):
        hint = typing.get_args(hint)[0]
    return hint


def _clause(value: Any, hint: Any, name: str) -> str:
    got = repr(value)
    got = _WORDS.get(type(value), type(value).__name__) if len(got) > 40 or value is None else got
    return f"{name or 'the whole'} must be {_expected(hint)}, but got {got}"


def _expected(hint: Any) -> str:
    hint = _bare(hint)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_expected(option) for option in inner))
    if origin is typing.Literal:
        return " or ".join(map(repr, inner))
    if typing.is_typeddict(hint) or origin in (dict, Mapping):
        return "an object"
    if origin is tuple and Ellipsis not in inner:
        return f"a list of {len(inner)}"
    if origin in (list, tuple, Sequence):
        return "a list"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
