"""Whatever a recipe is asked for is written into run.json and read back equal."""

import inspect
import json
import random
import types
import typing
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from difftilt.algorithms.ppo import PPO
from difftilt.cli.runs import RECIPES, recipe_of
from difftilt.experiment.record import restore, to_json
from difftilt.objective import Algorithm

RANDOM = 50


def in_range(hint: Any, rng: random.Random) -> Any:
    """A value within the limits of an annotation."""
    limits = {
        key: value
        for limit in hint.__metadata__
        for key in ("gt", "ge", "lt", "le")
        if (value := getattr(limit, key, None)) is not None
    }
    if hint.__origin__ in (int, float):
        low = limits.get("ge", limits.get("gt", 0))
        high = min(limits.get("le", limits.get("lt", low + 5)), low + 5)
        if hint.__origin__ is int:
            return rng.randint(int(low) + ("gt" in limits), int(high) - ("lt" in limits))
        return rng.uniform(low + 1e-3 * (high - low), high - 1e-3 * (high - low))
    return any_value(hint.__origin__, rng)


def any_value(hint: Any, rng: random.Random) -> Any:
    """A value that an annotation allows."""
    if typing.get_origin(hint) is typing.Annotated:
        return in_range(hint, rng)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any_value(rng.choice(typing.get_args(hint)), rng)
    if typing.get_origin(hint) is typing.Literal:
        return rng.choice(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)
        inner = inner[:1] * rng.randint(0, 3) if inner[-1] is Ellipsis else inner
        return tuple(any_value(one, rng) for one in inner)
    if hint is Algorithm:
        return PPO()
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        plain = {f.name: hints[f.name] for f in fields(hint) if "Callable" not in str(hints[f.name])}
        for _ in range(100):  # some settings exclude each other
            needed = [f.name for f in fields(hint) if f.default is MISSING and f.name in plain]
            chosen = {*needed, *rng.sample(sorted(plain), len(plain) // 2)}
            settings: Any = hint
            try:
                return settings(**{name: any_value(plain[name], rng) for name in chosen})
            except (ValueError, TypeError):
                continue
        raise AssertionError(f"no settings of {hint} were found")
    values = {
        bool: lambda: rng.random() < 0.5,
        int: lambda: rng.randint(0, 9),
        float: lambda: rng.choice([rng.random(), 1.0]),
        str: lambda: rng.choice(["NNGATTNN", 'ä "quoted" name', "nested"]),
        Path: lambda: Path("some") / "folder",
        types.NoneType: lambda: None,
    }
    return values[hint]()


def same(a, b) -> bool:
    """Equal, type by type; algorithms are modules, which do not compare."""
    if type(a) is not type(b):
        return False
    if is_dataclass(a) and not isinstance(a, type):
        return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def back(recipe, settings):
    return restore(recipe, json.loads(json.dumps({name: to_json(x) for name, x in settings.items()})))


@pytest.mark.parametrize("name", RECIPES)
def test_defaults_and_random_settings_are_read_back_equal(name):
    recipe, rng = recipe_of(name), random.Random(name)
    hints = typing.get_type_hints(recipe, include_extras=True)
    hints.pop("return")
    defaults = {n: p.default for n, p in inspect.signature(recipe).parameters.items()}
    tried = [defaults]
    for _ in range(RANDOM):
        tried.append({n: any_value(hint, rng) for n, hint in hints.items()})
    for settings in tried:
        read = back(recipe, settings)
        assert read.keys() == settings.keys()
        for key, value in settings.items():
            assert same(value, read[key]), (key, value, read[key])


def test_the_comparison_can_fail():
    training = inspect.signature(recipe_of("digits")).parameters["training"].default
    assert not same(training, replace(training, rounds=1))
    assert not same((0, 1), [0, 1]) and not same(1, 1.0)
