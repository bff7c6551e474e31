"""Numbers as people read them in a terminal."""

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Column, Table

NAMES = {"reward": "reward", "kl_nats": "KL (nats)", "objective": "J"}


def folded(*heads: str) -> Table:
    """A table whose cells are broken, and never cut, where the terminal is narrow."""
    return Table(*(Column(head, overflow="fold") for head in heads), box=None)


def show_numbers(columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Reward, KL, J and the gold scores, each with its error: never the reward alone.

    Args:
        columns: Rows as of summary.json, by the title of their column.
    """
    table = folded("", *columns)
    for name, label in NAMES.items():
        label = (
            f"{label}, at most"
            if all(row.get("kl_is_upper_bound") for row in columns.values()) and name == "kl_nats"
            else label
        )
        table.add_row(label, *(_cell(row.get(name), row.get(f"{name}_se")) for row in columns.values()))
    for kind, mark in (("gold", ""), ("parts", "part ")):
        for name in dict.fromkeys(name for row in columns.values() for name in row.get(kind, {})):
            known = [(row.get(kind, {}), row.get(f"{kind}_se", {})) for row in columns.values()]
            table.add_row(mark + name, *(_cell(mean.get(name), se.get(name)) for mean, se in known))
    for name in ("log_z", "diversity"):
        if any(row.get(name) is not None for row in columns.values()):
            cells = (_cell(row.get(name), row.get(f"{name}_se")) for row in columns.values())
            table.add_row(name.replace("log_z", "log Z"), *cells)
    Console().print(table)


def _cell(value: float | None, se: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "unknown"
    value = round(value, 3) + 0.0  # no negative zero
    return f"{value:.3f} ± {se:.3f}" if se is not None and math.isfinite(se) else f"{value:.3f}"


def show_json(content: Mapping[str, Any]) -> None:
    """Prints numbers as JSON."""
    Console().print_json(data=plain(content))


def plain(content: Any) -> Any:
    """Numbers that are not known become null, which JSON has a word for."""
    if isinstance(content, Mapping):
        return {name: plain(value) for name, value in content.items()}
    return None if isinstance(content, float) and not math.isfinite(content) else content
