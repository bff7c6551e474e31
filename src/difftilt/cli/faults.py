"""What is wrong with a command line, in one sentence where tyro prints a box."""

import dataclasses
import difflib
import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any

from difftilt.settings import OPEN, kebab

WRONG = (  # what Python says of a value that is none of its type, and what is said
    (
        r"no type matching (\S+) could be instantiated from (.*?)\. Got errors: .*?(?=Argument helptext)",
        r"\1 is expected, but got \2 ",
    ),
    (r"invalid literal for int\(\) with base 10: ", "a whole number is expected, but got "),
    (r"could not convert string to float: ", "a number is expected, but got "),
)  # fmt: skip


def told(box: str, options: type, program: str) -> str:
    """What to say of what tyro printed in a box.

    Args:
        options: The settings that the command has.
    """
    said = _missing_options(box, program) or _sentence(box)
    return _unknown_option(said, options, program) or said


def _sentence(box: str) -> str:
    """What tyro printed in a box, on one line."""
    plain = re.sub(r"[\u2500-\u257f]|-{4,}|\x1b\[[0-9;]*m", " ", box)
    lines = [" ".join(line.split()) for line in plain.splitlines() if line.strip()]
    text = " ".join(lines[1:] or lines)  # the first line is the box's title
    text = re.sub(r"^Error parsing [\w.-]+: ", "", text)  # what follows names the settings itself
    for pattern, words in WRONG:
        text = re.sub(pattern, words, text)
    return re.sub(r"(?<![.:;,]) (?=(Available|Perhaps|Argument|For) )", "; ", text)


def _missing_options(box: str, program: str) -> str:
    """What is said of options that were not given, without their help; empty of other faults."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    missing = plain.partition("Missing from")[2].partition("For full helptext")[0]
    named = re.findall(r"^\W {5}(\S.*?)\W*$", missing, re.MULTILINE)  # their help stands further to the right
    said = f"Missing from {program}: {', '.join(named)}; {program} --help tells of every option"
    return said if named else ""


def _unknown_option(said: str, options: type, program: str) -> str:
    """What is said of an option that does not exist, with the nearest one; empty of other faults."""
    unknown = re.search(r"[Uu]nrecogni[sz]ed (?:options?|arguments?):? *(--[\w.-]+)", said)
    if unknown is None:
        return ""
    word = unknown.group(1).removeprefix("--").replace("_", "-")
    names = list(_names(options))
    names += re.findall(r"--([\w.-]+)", said.replace(unknown.group(1), "", 1))
    initials = [name for name in names if "".join(part[:1] for part in name.split("-")) == word]
    inside = [name for name in names if word in name.split("-") or name.startswith(word)]
    fields = dataclasses.fields(options)
    taken = [field.name for field in fields if OPEN in getattr(field.type, "__metadata__", ())]
    handed_on = [f"{name}.{word}" for name in taken]  # settings that are not known here
    near = difflib.get_close_matches(word, names, 1, 0.75 if handed_on else 0.5)
    found = [*initials, *near, *inside, *handed_on]
    choices = dict(_choices(options))
    meant = f"but a word such as {found[0]}:{choices[found[0]]}" if found and found[0] in choices else ""
    nearest = f", {meant};" if meant else f"; did you mean --{found[0]}?" if found else ";"
    return f"there is no option --{word}{nearest} {program} --help lists all of them"


def _names(settings: Any) -> Iterator[str]:
    """The names of all plain options."""
    for name, hint in _hints(settings):
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _names(hint)
        else:
            yield name


def _choices(settings: Any) -> Iterator[tuple[str, str]]:
    """What is one of several groups of settings, with the name of the first of these."""
    for name, hint in _hints(settings):
        group = [one for one in map(_bare, typing.get_args(hint)) if isinstance(one, type)]
        if group and dataclasses.is_dataclass(group[0]):
            yield name, kebab(group[0].__name__)


def _hints(settings: Any) -> Iterator[tuple[str, Any]]:
    """The name of each setting, and its type."""
    for field in dataclasses.fields(settings):
        yield field.name.replace("_", "-"), _bare(field.type)


def _bare(hint: Any) -> Any:
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
