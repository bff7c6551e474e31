"""A setting outside its declared range is refused in one sentence that names it."""

from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difftilt.settings import Count, Natural, NonNegative, Positive, Share, Unit, check_settings, check_value


@dataclass
class Settings:
    rate: Positive = 1.0
    weight: NonNegative = 0.0
    share: Share = 1.0
    unit: Unit = 0.5
    count: Count = 1
    rest: Natural = 0
    kind: Literal["a", "b"] = "a"
    maybe: Count | None = None
    perhaps: Literal["a", "b"] | None = None
    several: tuple[Literal["a", "b"], ...] = ()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rate": 1e-9, "weight": 0, "share": 1, "unit": 0, "count": 10, "rest": 0},
        {"kind": "b", "maybe": 3, "perhaps": "b", "several": ("b", "a")},
    ],
)
def test_settings_in_range_are_accepted(settings):
    check_settings(Settings(**settings))


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("rate", 0.0, "> 0"),
        ("rate", -1.0, "> 0"),
        ("rate", float("nan"), "> 0"),
        ("rate", float("inf"), "finite"),
        ("weight", -1e-9, ">= 0"),
        ("share", 0.0, "> 0 and <= 1"),
        ("share", 1.1, "> 0 and <= 1"),
        ("unit", -0.1, ">= 0 and <= 1"),
        ("count", 0, ">= 1"),
        ("count", 1.5, "whole number"),
        ("count", True, "whole number"),
        ("rest", -1, ">= 0"),
        ("kind", "c", "one of 'a', 'b'"),
        ("maybe", 0, ">= 1"),
        ("perhaps", "c", "one of 'a', 'b'"),
        ("several", "a", "a tuple"),
    ],
)
def test_settings_out_of_range_are_named_with_what_is_wanted(name, value, wanted):
    with pytest.raises(ValueError) as caught:
        check_settings(Settings(**{name: value}))
    message = str(caught.value)
    assert message.startswith(f"{name} must be ") and wanted in message and repr(value) in message
    assert "\n" not in message


def test_every_item_of_a_tuple_is_checked():
    with pytest.raises(ValueError, match=r"several must be one of 'a', 'b', but .*'c'"):
        check_settings(Settings(several=("a", "c")))  # type: ignore[arg-type]


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_a_share_is_accepted_exactly_in_its_range(value):
    hint: Any = Share
    if 0 < value <= 1:
        check_value("eta", value, hint)
    else:
        with pytest.raises(ValueError, match="eta must be "):
            check_value("eta", value, hint)
