"""What stands in a run folder, read with care: the run may have stopped at any moment."""

import base64
import io
import math
import re
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from difftilt.data.owned import check_inside
from difftilt.data.read import MIB, read_bytes, read_cells, read_json, read_rows
from difftilt.evaluation.estimate import Estimate
from difftilt.evaluation.schema import Info, Numbers, Row, Summary

SMALL_IMAGE, LARGE_IMAGE = 500, 900  # pixels across: enlarged without blur below, made smaller above
MOST_PIXELS = 50_000_000  # of a picture: what claims more is not unpacked
LARGE_DRAWING = 2_000_000  # bytes of an SVG file that is not shown
LARGE_FILE = 300_000  # bytes of a picture beyond which it is compressed
Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Run:
    """A run folder as it was read.

    Args:
        info: `run.json`.
        steps: The rows of `metrics.jsonl`.
        rounds: The first of them of each round.
        summary: `summary.json`, without what was null.
        before: The same numbers of the pretrained model, which are known before the run ends.
        samples: The scores of single samples, by column, before and after.
        texts: The same samples as text, before and after; none if they have no text.
        clusters: Which cluster each sample after is of; none if there are no clusters.
        missing: What was expected and not found, in words.
    """

    folder: Path
    info: dict[str, Any]
    steps: list[dict[str, Any]]
    rounds: list[dict[str, Any]]
    summary: dict[str, Any]
    before: dict[str, Any]
    samples: dict[str, Samples]
    texts: dict[str, list[str]]
    clusters: list[str]
    missing: list[str]

    @property
    def settings(self) -> dict[str, Any]:
        return self.info.get("settings") or {}

    @property
    def alpha(self) -> float | None:
        """The alpha in force: the last one, if a target KL moves it."""
        last = self.rounds[-1] if self.rounds else {}
        return _number(self.summary.get("alpha", last.get("alpha", self.settings.get("alpha"))))

    @property
    def target_kl(self) -> float | None:
        return _number(self.settings.get("target_kl"))

    def objective(self, row: Mapping[str, Any]) -> Estimate | None:
        """J of a round by the alpha in force; J's of different alphas cannot be compared."""
        found, alpha = estimate(row, "objective"), self.alpha
        if found is None or alpha is None or row.get("alpha", alpha) == alpha:
            return found
        return Estimate(as_float(row.get("reward")) - alpha * as_float(row.get("kl_nats")), found.se)


def estimate(row: Mapping[str, Any], name: str) -> Estimate | None:
    """A number of a row with its standard error, NaN if there is none."""
    value, se = row.get(name), row.get(f"{name}_se")
    return None if value is None else Estimate(as_float(value), as_float(se))


def read_run(folder: Path) -> Run:
    """Reads a run folder; only `run.json` must be there."""
    check_inside(folder)
    info = _json(folder / "run.json", Info)
    if info is None:
        raise ValueError(
            f"'{folder}' is not a run folder, since it has no run.json; give one that a run wrote"
        )
    missing = []
    summary = _json(folder / "summary.json", Summary)
    if summary is None:
        missing.append("summary.json (it is written when the run ends)")
    path = folder / "metrics.jsonl"
    steps, torn = read_rows(path, Row) if path.exists() else ([], 0)  # a run may be writing one
    rounds = _firsts(steps)
    if torn:
        missing.append(f"{torn} unreadable row{'s' * (torn > 1)} of metrics.jsonl")
    if not rounds:
        missing.append("metrics.jsonl (one row per gradient step)")
    samples, texts, clusters = {}, {}, []
    for when in ("before", "after"):
        rows = _table(folder / "samples" / f"{when}.csv")
        samples[when] = _scores(rows, (summary or {}).get("gold") or {})
        texts[when] = [row["sample"] for row in rows if row.get("sample")]
        clusters = [row["cluster"] for row in rows if "cluster" in row]
        if not samples[when]:
            missing.append(f"samples/{when}.csv (the scores of single samples)")
    summary = {key: value for key, value in (summary or {}).items() if value is not None}
    before = summary.get("before") or _json(folder / "before.json", Numbers) or {}
    return Run(folder, info, steps, rounds, summary, before, samples, texts, clusters, missing)


def _json(path: Path, hint: Any) -> dict[str, Any] | None:
    return read_json(path, hint, 64 * MIB) if path.exists() else None


def _firsts(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of each round."""
    rounds: dict[int, dict[str, Any]] = {}
    for row in rows:
        rounds.setdefault(row["round"], row)
    return list(rounds.values())


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a table of samples; none if there is no table."""
    if not path.exists():
        return []
    header, *rows = read_cells(path) or [[]]
    return [dict(zip(header, cells, strict=False)) for cells in rows if cells]


def _scores(rows: list[dict[str, str]], gold: Iterable[str]) -> Samples:
    """The columns that hold the reward, the gold scores and the parts of the reward."""
    known, marks = {"reward", *gold}, ("gold", "part ")
    names = [name for name in (rows[0] if rows else ()) if name in known or str(name).startswith(marks)]
    scores = {name: [as_float(row.get(name)) for row in rows] for name in names}
    return {name: [x for x in column if x == x or name == "reward"] for name, column in scores.items()}


def as_float(value: Any) -> float:
    """The value as a number, NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _number(value: Any) -> float | None:
    """The value, if it is a finite number."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None


@dataclass(frozen=True)
class Picture:
    """A picture as a data URI, or what is wrong with it."""

    name: str
    uri: str = ""
    width: int = 0
    height: int = 0

    @property
    def small(self) -> bool:
        return self.width < SMALL_IMAGE

    @property
    def what(self) -> str:
        """What it shows, if its file is called after that, as in after-best.svg."""
        found = re.fullmatch(r"(?:before|after)-([a-z-]+)\.\w+", self.name)
        return found[1].replace("-", " ") if found else ""


def read_pictures(folder: Path) -> list[tuple[Picture, Picture]]:
    """Every pair of samples/before*.png and samples/after*.png, and of such files of SVG."""
    endings = {
        path.name.removeprefix(when)
        for when in ("before", "after")
        for kind in ("png", "svg")
        for path in folder.glob(f"{when}*.{kind}")
    }
    pairs = [(folder / f"before{end}", folder / f"after{end}") for end in sorted(endings)]
    return [(_picture(before), _picture(after)) for before, after in pairs]


def _picture(path: Path) -> Picture:
    try:
        content = read_bytes(path)
        if path.suffix == ".svg":
            return _drawing(path.name, content)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if math.prod(image.size) > MOST_PIXELS:
                return Picture(path.name)
            image.load()
            kind = "png"
            if len(content) > LARGE_FILE:
                image = image.convert("RGB")
                image.thumbnail((LARGE_IMAGE, 4 * LARGE_IMAGE))
                packed = io.BytesIO()
                image.save(packed, "webp", quality=80)
                content, kind = packed.getvalue(), "webp"
            data = base64.b64encode(content).decode()
            return Picture(path.name, f"data:image/{kind};base64,{data}", *image.size)
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        struct.error,
        zlib.error,
        Image.DecompressionBombError,
    ):
        return Picture(path.name)


def _drawing(name: str, content: bytes) -> Picture:
    """An SVG file; as the source of an image nothing in it is executed, and nothing loaded."""
    size = re.search(
        rb"<svg[^>]*\swidth=['\"](\d{1,5})px['\"]\s+height=['\"](\d{1,5})px['\"]", content[:5000]
    )
    if size is None or len(content) > LARGE_DRAWING:
        return Picture(name)
    data = base64.b64encode(content).decode()
    # never small: a drawing is sharp at any size
    return Picture(name, f"data:image/svg+xml;base64,{data}", max(int(size[1]), SMALL_IMAGE), int(size[2]))
