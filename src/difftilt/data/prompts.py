"""Prompts as people have them: lines of text, or rows of a table or of JSON with what else is known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difftilt.data.read import UnreadableError, packed_text, parse_json, read_cells

PROMPT = "prompt"  # the column of a table, or the name in JSON, that holds the text


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of prompts, all with the same names; `prompt` is the text.

    Args:
        path: `.csv` or `.tsv` with a header, `.jsonl` with an object a line, or else text, a prompt a line.

    Raises:
        UnreadableError: In one sentence that names the file, the line and what is wrong.
    """
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind in ("csv", "tsv"):
        found = _of_table(path, read_cells(path, ",;\t"))
    else:
        lines = {i: line.strip() for i, line in enumerate(packed_text(path).splitlines(), 1) if line.strip()}
        found = {i: _object(path, i, x) if kind == "jsonl" else {PROMPT: x} for i, x in lines.items()}
    if not found:
        raise UnreadableError(f"{path} holds no prompts; write one a line")
    names = next(iter(found.values())).keys()
    for line, row in found.items():
        text = row.get(PROMPT)
        if not isinstance(text, str) or not text.strip():
            raise UnreadableError(f"{path}, line {line}: '{PROMPT}' must be a text, but got {text!r}")
        if row.keys() != names:
            raise UnreadableError(
                f"{path}, line {line}: every row needs the same names, {', '.join(names)}, but got"
                f" {', '.join(row)}"
            )
    return list(found.values())


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as conditions: a list per name."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _of_table(path: Path, cells: list[list[str]]) -> dict[int, dict[str, Any]]:
    header = [name.strip() for name in cells[0]] if cells else []
    if PROMPT not in header:
        raise UnreadableError(f"{path} needs a column '{PROMPT}', but its header is {header}")
    rows = {i: row for i, row in enumerate(cells[1:], 2) if any(cell.strip() for cell in row)}
    for i, row in rows.items():
        if len(row) != len(header):
            raise UnreadableError(f"{path}, row {i} has {len(row)} cells, but the header {len(header)}")
    return {i: dict(zip(header, row, strict=True)) for i, row in rows.items()}


def _object(path: Path, number: int, line: str) -> dict[str, Any]:
    found = parse_json(line, f"{path}, line {number}")
    if not isinstance(found, dict):
        raise UnreadableError(f"{path}, line {number} must be an object, but got {json.dumps(found)[:40]}")
    return found
