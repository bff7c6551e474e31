"""Ranges of settings: declared once in a field's annotation, checked when the settings are made."""

import math
import types
import typing
from dataclasses import fields
from typing import Annotated, Any

import annotated_types as at

Positive = Annotated[float, at.Gt(0)]
NonNegative = Annotated[float, at.Ge(0)]
Share = Annotated[float, at.Interval(gt=0, le=1)]
Unit = Annotated[float, at.Interval(ge=0, le=1)]
Count = Annotated[int, at.Ge(1)]
Natural = Annotated[int, at.Ge(0)]

_SYMBOLS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def check_settings(settings: Any) -> None:
    """Raises ValueError if a field of a dataclass lies outside the range of its annotation."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        check_value(field.name, getattr(settings, field.name), hints[field.name])


def check_value(name: str, value: Any, hint: Any) -> None:
    """Raises ValueError if a value lies outside an annotated range, or outside a Literal's values."""
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if union else (hint,):
        if typing.get_origin(option) is typing.Literal and value not in typing.get_args(option):
            valid = ", ".join(map(repr, typing.get_args(option)))
            raise ValueError(f"{name} must be one of {valid}, but {value!r} came")
        numeric = typing.get_origin(option) is Annotated and option.__origin__ in (int, float)
        if numeric and value is not None:
            _check_number(name, value, *typing.get_args(option))


def _check_number(name: str, value: Any, kind: type, *limits: Any) -> None:
    bounds = [bound for item in limits for bound in _bounds(item)]
    wanted = " and ".join(f"{_SYMBOLS[k]} {v}" for k, v in bounds)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (kind is int and not isinstance(value, int)) or not number or not math.isfinite(value):
        noun = "a whole number" if kind is int else "a finite number"
        raise ValueError(f"{name} must be {noun} {wanted}, but {value!r} came")
    if not all(_holds(key, value, limit) for key, limit in bounds):
        raise ValueError(f"{name} must be {wanted}, but {value} came")


def _bounds(item: Any) -> list[tuple[str, float]]:
    """The limits that one annotation states."""
    return [(key, getattr(item, key)) for key in _SYMBOLS if getattr(item, key, None) is not None]


def _holds(key: str, value: float, limit: float) -> bool:
    return {"gt": value > limit, "ge": value >= limit, "lt": value < limit, "le": value <= limit}[key]
