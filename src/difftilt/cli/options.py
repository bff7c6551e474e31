"""A command line becomes the arguments of a function: annotations are the options, docstrings the help."""

import contextlib
import dataclasses
import functools
import inspect
import io
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import tyro

from difftilt.algorithms.choices import PRESETS
from difftilt.settings import UsageError, check_value, kebab


def parse(
    function: Callable[..., Any],
    words: list[str],
    program: str,
    *groups: type,
    without: Collection[str] = (),
    title: str = "",
) -> dict[str, Any]:
    """The arguments of a function, and the fields of option groups beside it, from a command line.

    Args:
        without: Arguments of the function that are not asked for.
        title: What the help begins with; the first line of the function's docstring by default.

    Raises:
        UsageError: In one sentence, where tyro prints a box.
    """
    asked = [p for p in inspect.signature(function).parameters.values() if p.name not in without]
    defaults = {p.name: p.default for p in asked}
    hints = typing.get_type_hints(function, include_extras=True)
    first, rest = (inspect.getdoc(function) or "").partition("\n")[::2]
    doc = f"{title or first}\n{rest}"
    for group in groups:
        defaults |= {f.name: f.default for f in dataclasses.fields(group)}
        hints |= typing.get_type_hints(group, include_extras=True)
        doc += "\n" + (inspect.getdoc(group) or "").partition("Args:")[2]
    fields = [
        _field(name, subcommands(name, hints[name], default, words), default)
        for name, default in defaults.items()
    ]
    options = dataclasses.make_dataclass("Options", fields, frozen=True, namespace={"__doc__": doc})
    parsed = _parsed(options, words, program)
    values = {field[0]: getattr(parsed, field[0]) for field in fields}
    try:
        check(values, hints)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return values


def _parsed(options: type, words: list[str], program: str) -> Any:
    """An instance of the options; tyro's box of an error becomes a sentence."""
    printed = io.StringIO()
    config = (tyro.conf.CascadeSubcommandArgs, tyro.conf.SuppressFixed)
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(options, prog=program, args=words, config=config)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(sentence(printed.getvalue())) from None


def _field(name: str, hint: Any, default: Any) -> tuple[str, Any, Any]:
    """A field as `make_dataclass` wants it. Settings within settings keep their own short names."""
    if dataclasses.is_dataclass(hint):
        hint = tyro.conf.OmitArgPrefixes[hint]
    if default is inspect.Parameter.empty:
        return name, hint, dataclasses.field()
    return name, hint, dataclasses.field(default_factory=lambda: default)


def subcommands(name: str, hint: Any, default: Any, words: Collection[str] = ()) -> Any:
    """A union of settings with a name, the given default and one line of help for each of its classes.

    The line is the first of the class's module; the class's own help is shown where it has been chosen.
    Where there are presets of a class, each of them is one more choice.
    """
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    options = []
    for option in typing.get_args(hint):
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            word = kebab(option.__name__)
            line = (sys.modules[option.__module__].__doc__ or "").partition("\n")[0]
            settings: dict[str, Any] = {"default": default} if type(default) is option else {}
            line = None if f"{name}:{word}" in words else line
            option = Annotated[option, tyro.conf.subcommand(word, description=line, **settings)]
        options.append(option)
    for word, (preset, line) in PRESETS.items():
        if type(preset) in typing.get_args(hint):
            choice = tyro.conf.subcommand(word, default=preset, description=line)
            options.append(Annotated[type(preset), choice])
    return functools.reduce(operator.or_, options)


def check(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises ValueError for the first value outside its annotated range."""
    for name, value in values.items():
        check_value(name, value, hints.get(name))


def sentence(box: str) -> str:
    """What tyro printed in a box, on one line."""
    plain = re.sub(r"[\u2500-\u257f]|-{4,}|\x1b\[[0-9;]*m", " ", box)
    lines = [" ".join(line.split()) for line in plain.splitlines() if line.strip()]
    text = " ".join(lines[1:] or lines)  # the first line is the box's title
    return re.sub(r"(?<![.:;,]) (?=(Available|Perhaps|Argument|For) )", "; ", text)
