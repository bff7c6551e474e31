"""Settings: their ranges, declared once in annotations, and their names on the command line and in files."""

import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any

import annotated_types as at

Positive = Annotated[float, at.Gt(0)]
NonNegative = Annotated[float, at.Ge(0)]
Share = Annotated[float, at.Interval(gt=0, le=1)]
Unit = Annotated[float, at.Interval(ge=0, le=1)]
Count = Annotated[int, at.Ge(1)]
Natural = Annotated[int, at.Ge(0)]
Rate = Annotated[float, at.Interval(gt=0, le=10)]  # Adam moves each weight by up to so much per step
OPEN = "open"
OpenSettings = Annotated[tuple[str, ...], OPEN]  # NAME=VALUE of each; --call.NAME VALUE as options
Threads = Annotated[int, at.Interval(ge=1, le=256)]

_SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def check_settings(settings: Any) -> None:
    """Raises ValueError if a field of a dataclass lies outside the range of its annotation."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        check_value(field.name, getattr(settings, field.name), hints[field.name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raises ValueError if a value, or an item of a tuple, lies outside its range or a Literal's values."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    if union and type(value) in (type(None), str) and type(value) in typing.get_args(hint):
        return
    for option in typing.get_args(hint) if union else (hint,):
        if typing.get_origin(option) is tuple and typing.get_args(option)[1:] == (...,):
            if not isinstance(value, tuple):
                raise ValueError(f"{name} must be a tuple, but got {value!r}")
            for item in value:
                check_value(name, item, typing.get_args(option)[0])
        if typing.get_origin(option) is typing.Literal and value not in typing.get_args(option):
            valid = ", ".join(map(repr, typing.get_args(option)))
            raise ValueError(f"{name} must be one of {valid}, but got {value!r}")
        numeric = typing.get_origin(option) is Annotated and option.__origin__ in (int, float)
        if numeric and value is not None:
            _check_number(name, value, *typing.get_args(option))


def _check_number(name: str, value: Any, kind: type, *limits: Any) -> None:
    bounds = [bound for item in limits for bound in _bounds(item)]
    wanted = " and ".join(f"{_SYMBOLS[k]} {v}" for k, v in bounds)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (kind is int and not isinstance(value, int)) or not number or not math.isfinite(value):
        noun = "a whole number" if kind is int else "a finite number"
        raise ValueError(f"{name} must be {noun} {wanted}, but got {value!r}")
    if not all(_holds(key, value, limit) for key, limit in bounds):
        raise ValueError(f"{name} must be {wanted}, but got {value}")


def _bounds(item: Any) -> list[tuple[str, float]]:
    """The limits that one annotation states."""
    return [(key, getattr(item, key)) for key in _SYMBOLS if getattr(item, key, None) is not None]


def _holds(key: str, value: float, limit: float) -> bool:
    return {"gt": value > limit, "ge": value >= limit, "lt": value < limit, "le": value <= limit}[key]


class UsageError(ValueError):
    """The command line cannot be understood."""


def choose(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """The option of that name, or an error that names the valid ones."""
    if name in options:
        return options[name]
    close = difflib.get_close_matches(name, options, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise UsageError(f"there is no {kind} {name!r}: valid are {', '.join(options)}{hint}")


def kebab(name: str) -> str:
    """RewardWeighted to reward-weighted, BestOfN to best-of-n, PPO to ppo: a class on the command line."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def settable(settings: type) -> dict[str, Any]:
    """The annotations of those settings that can be written down, which a function cannot."""
    hints = typing.get_type_hints(settings, include_extras=True)
    return {f.name: hints[f.name] for f in fields(settings) if not _is_function(hints[f.name])}


def _is_function(hint: Any) -> bool:
    return any(typing.get_origin(option) is Callable for option in (hint, *typing.get_args(hint)))
