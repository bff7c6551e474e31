"""How pages write numbers, dates and commands, and how they are filled in."""

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from difftilt.data.atomic import atomic_file
from difftilt.data.read import UnreadableError, read_text
from difftilt.evaluation.estimate import MINUS, Estimate
from difftilt.evaluation.run_folder import as_float

GENERATOR = '<meta name="generator" content="difftilt">'
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def page(template: str, **content: Any) -> str:
    """A template filled in. Everything that a user or a run wrote is escaped, unless it is Markup."""
    environment = Environment(
        loader=PackageLoader("difftilt.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def save_page(path: Path, text: str, ours: bool = False) -> None:
    """Writes a page in the place of an earlier one of ours, and of nothing else.

    Args:
        ours: Whether it is known that what stands there is ours.

    Raises:
        UnreadableError: If a file of somebody else's has that name.
    """
    if not ours and path.exists() and GENERATOR not in read_text(path)[:1000]:
        raise UnreadableError(f"{path} was not written by difftilt, and is not replaced; move it elsewhere")
    with atomic_file(path) as file:
        file.write_text(text, encoding="utf-8")


def figures(value: Any) -> str:
    """Four figures, with a power of ten as people write it; empty if there is no number."""
    if value is None:
        return ""
    mean, _, power = Estimate(as_float(value)).mean.partition("e")
    raised = str(int(power.replace(MINUS, "-"))).translate(RAISED) if power else ""
    return f"{mean} \N{MULTIPLICATION SIGN} 10{raised}" if power else mean


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Nested settings as dotted names and the values as JSON."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)


def lines(command: Any) -> list[str]:
    """A command in parts that must not be broken: an option stays with its first value."""
    parts: list[str] = []
    for word in str(command or "").split(" "):
        flag = parts[-1] if parts else ""
        if flag.startswith("-") and " " not in flag and not word.startswith("-"):
            parts[-1] = f"{flag} {word}"
        else:
            parts.append(word)
    return [part for part in parts if part]


def count(value: float) -> str:
    """A number of things, with thousands apart, in millions where there are many."""
    return f"{value:,.0f}" if value < 1e7 else f"{value / 1e6:,.1f} million"


def duration(seconds: float) -> str:
    """A time in hours, minutes and seconds, of which two are shown."""
    if not math.isfinite(seconds):  # as a damaged file says
        return f"{seconds:g} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.3g} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def date(text: Any) -> Any:
    """An ISO date as people write it, or the text as it stands."""
    try:
        return f"{datetime.fromisoformat(text).astimezone(UTC):%d %B %Y, %H:%M} UTC"
    except (TypeError, ValueError):
        return text
