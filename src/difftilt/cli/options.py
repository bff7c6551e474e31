"""A command line becomes the arguments of a function: annotations are the options, docstrings the help."""

import contextlib
import dataclasses
import functools
import inspect
import io
import operator
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any

import tyro

from difftilt.cli.faults import told
from difftilt.experiment import code
from difftilt.settings import OPEN, UsageError, check_value, kebab

ALGORITHM = "difftilt.objective.Algorithm"


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
    defaults, hints = {p.name: p.default for p in asked}, hints_of(function)
    first, rest = (inspect.getdoc(function) or "").partition("\n")[::2]
    doc = f"{title or first}\n{rest}" + ("" if "Args:" in rest else "\n\nArgs:\n")
    for group in groups:
        defaults |= {f.name: f.default for f in dataclasses.fields(group)}
        hints |= typing.get_type_hints(group, include_extras=True)
        for base in group.__mro__:  # inherited options are told of where they are declared
            doc += "\n" + inspect.cleandoc(base.__dict__.get("__doc__") or "").partition("Args:")[2]
    words = _settled(_joined(_named(words, hints), hints), defaults)
    words, own = own_algorithms(words, hints)
    fields = [
        _field(name, subcommands(name, hints[name], default, words, own), default)
        for name, default in defaults.items()
    ]
    options = dataclasses.make_dataclass(
        "Options", fields, frozen=True, kw_only=True, namespace={"__doc__": doc}
    )
    parsed = _parsed(options, words, program)
    values = {field[0]: getattr(parsed, field[0]) for field in fields}
    try:
        for name, value in values.items():
            check_value(name, value, hints.get(name))
    except ValueError as error:
        raise UsageError(str(error)) from None
    return values


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function.

    Raises:
        UsageError: If a parameter has none, or none that can be understood.
    """
    name = getattr(function, "__name__", str(function))
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise UsageError(f"the annotations of {name} cannot be understood: {error}") from None
    bare = [p for p in inspect.signature(function).parameters if p not in hints]
    if bare:
        raise UsageError(
            f"parameter {bare[0]!r} of {name} has no annotation, which says what its option takes; add one,"
            f" such as {bare[0]}: float = 1.0"
        )
    return hints


def _named(words: list[str], hints: Mapping[str, Any]) -> list[str]:
    """The words with open settings gathered: --call.height 512 --call.seed 1 is --call height=512 seed=1.

    Raises:
        UsageError: If one has no value.
    """
    rest, found, left = [], {}, iter(words)
    for word in left:
        option, _, key = word.removeprefix("--").partition(".")
        if not (word.startswith("--") and key and OPEN in getattr(hints.get(option), "__metadata__", ())):
            rest.append(word)
            continue
        name, equals, value = key.partition("=")
        value = value if equals else next(left, None)
        if value is None:
            raise UsageError(f"{word} needs a value, such as {word} 512")
        found.setdefault(option, []).append(f"{name}={value}")
    return rest + [word for option, settings in found.items() for word in (f"--{option}", *settings)]


def _joined(words: list[str], hints: Mapping[str, Any]) -> list[str]:
    """The words with those of several rewards made one: --reward a.py:f:0.7 qed:0.3."""
    if "reward" not in hints:
        return words
    from difftilt.rewards.combined import SEPARATOR  # loads torch, as recipes have

    choices = tuple(f"{name}:" for name, hint in hints.items() if len(typing.get_args(hint)) > 1)
    joined, several = [], False
    for word in words:
        if several and word == SEPARATOR.strip():
            continue
        if several and joined[-1] != "--reward" and not word.startswith(("--", *choices)):
            joined[-1] += SEPARATOR + word
        else:
            joined.append(word)
            several = word == "--reward" if word.startswith("-") else several and joined[-2] == "--reward"
    return joined


def _settled(words: list[str], defaults: Mapping[str, Any]) -> list[str]:
    """The words without a recipe's own penalty, where they ask for failures to be treated otherwise."""
    names = [word.replace("_", "-").partition("=")[0] for word in words]
    own = any(getattr(default, "penalty", None) is not None for default in defaults.values())
    if not own or "--on-error" not in names or "--penalty" in names:
        return words
    place = names.index("--on-error")
    how = words[place].partition("=")[2] or "".join(words[place + 1 : place + 2])
    return words if how == "penalty" else [*words[:place], "--penalty", "None", *words[place:]]


def own_algorithms(words: list[str], hints: dict[str, Any]) -> tuple[list[str], dict[str, type]]:
    """Algorithms that are named as `algorithm:FILE.py:NAME`, or that packages register.

    Returns:
        The words with a short name in the place of each; and the classes by their short names.
    """
    names = [name for name, hint in hints.items() if _takes_algorithms(hint)]
    if not names:
        return words, {}
    from difftilt.objective import Algorithm  # loads torch, as the hint has, but not all commands need

    own = {name: entry.load() for name, entry in code.registered("algorithm").items()}
    short = []
    for word in words:
        name, _, text = word.partition(":")
        if name in names and code.outside(text):
            found: Any = code.find("algorithm", text, {})
            if not (
                isinstance(found, type) and issubclass(found, Algorithm) and dataclasses.is_dataclass(found)
            ):
                raise UsageError(f"{text} is no algorithm; it has to be a dataclass that extends Algorithm")
            own[kebab(found.__name__)] = found
            word = f"{name}:{kebab(found.__name__)}"
        short.append(word)
    return short, own


def _takes_algorithms(hint: Any) -> bool:
    """Whether one of the types is that of all algorithms."""
    return any(f"{o.__module__}.{o.__qualname__}" == ALGORITHM for o in _classes(hint))


def _classes(hint: Any) -> list[type]:
    return [option for option in typing.get_args(hint) if isinstance(option, type)]


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
        box = printed.getvalue()
        raise UsageError(told(box, options, program)) from None


def _field(name: str, hint: Any, default: Any) -> tuple[str, Any, Any]:
    """A field as `make_dataclass` wants it. Settings within settings keep their own short names."""
    if dataclasses.is_dataclass(hint):
        hint = tyro.conf.OmitArgPrefixes[hint]
    if default is inspect.Parameter.empty or default is dataclasses.MISSING:
        return name, hint, dataclasses.field()
    return name, hint, dataclasses.field(default_factory=lambda: default)


def subcommands(
    name: str, hint: Any, default: Any, words: Collection[str] = (), own: dict[str, type] | None = None
) -> Any:
    """A union of settings with a name, the given default and one line of help for each of its classes.

    The line is the first of the class's module; the class's own help is shown where it has been chosen.
    Where there are presets of a class, each of them is one more choice, and so are a user's own algorithms.
    """
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint
    choices: list[Any] = [o for o in typing.get_args(hint) if not inspect.isabstract(o)]
    if _takes_algorithms(hint):
        choices = [*(own or {}).values(), *choices]
    options = []
    for option in choices:
        if isinstance(option, type) and dataclasses.is_dataclass(option):
            word = kebab(option.__name__)
            line = (sys.modules[option.__module__].__doc__ or "").partition("\n")[0]
            settings: dict[str, Any] = {"default": default} if type(default) is option else {}
            line = None if f"{name}:{word}" in words else line
            option = Annotated[option, tyro.conf.subcommand(word, description=line, **settings)]
        options.append(option)
    for word, (preset, line) in _presets(hint).items():
        if type(preset) in typing.get_args(hint):
            choice = tyro.conf.subcommand(word, default=preset, description=line)
            options.append(Annotated[type(preset), choice])
    return functools.reduce(operator.or_, options)


def _presets(hint: Any) -> Mapping[str, tuple[Any, str]]:
    """Settings that papers published, where a hint asks for an algorithm."""
    if not _takes_algorithms(hint):
        return {}
    from difftilt.algorithms.choices import PRESETS  # loads torch, as the hint has

    return PRESETS
