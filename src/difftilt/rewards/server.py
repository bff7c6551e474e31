"""A reward that a server computes: samples go there as JSON, numbers come back as JSON."""

import json
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from difftilt.rewards.image import pngs
from difftilt.shapes import Cond, PerSample, Sample

MOST = 1 << 24  # bytes of an answer that are read
PART = 1 << 16  # of them at a time, between which the clock is looked at


class ServerReward:
    """Posts a batch, and takes one number for each sample.

    It sends {"samples": [...], "conditions": {"prompt": [...], ...}}, where a sample is its text, an image as
    a data: URL of a PNG (of a video a list of them), or else its numbers. It expects {"rewards": [...]} with
    a number for each sample, or null for one that has no reward.

    Args:
        url: Of http or https.
        spell: Writes samples as text, if they are text.
        timeout: Seconds that one batch may take, above 0; in `Workers` a batch is a single sample.

    Raises:
        ValueError: When it is called, if the server cannot be reached, takes too long, or answers anything
            else.
    """

    def __init__(self, url: str, spell: Callable[[Sample], list[str]] | None, timeout: float):
        self.url, self._spell, self._timeout, self.__name__ = url, spell, timeout, url

    def __call__(self, sample: Sample, cond: Cond) -> PerSample:
        asked = {"samples": self._written(sample), "conditions": _conditions(cond)}
        content = posted(self.url, asked, self._timeout, len(sample))
        return torch.tensor(_numbers(content, len(sample), self.url), dtype=torch.float64)

    def _written(self, sample: Sample) -> list[Any]:
        if self._spell is not None:
            return self._spell(sample)
        if sample.is_floating_point() and sample.ndim == 5:
            return [pngs(video) for video in sample]
        if sample.is_floating_point() and sample.ndim == 4 and sample.shape[1] in (1, 3):
            return pngs(sample)
        return sample.tolist()


def posted(
    url: str, asked: Mapping[str, Any], timeout: float, samples: int, headers: Mapping[str, str] | None = None
) -> bytes:
    """What a server answers to JSON.

    Args:
        timeout: Seconds that it may take, above 0.
        samples: That it is asked about, for messages.
        headers: Of the request, besides its type.

    Raises:
        ValueError: In one sentence, if there is no answer in time.
    """
    about = {"Content-Type": "application/json", **(headers or {})}
    try:
        with urlopen(Request(url, json.dumps(asked).encode(), about), timeout=timeout) as answer:
            return _read(answer, time.monotonic() + timeout)
    except HTTPError as error:
        said = " ".join(error.read(200).decode(errors="replace").split())
        raise ValueError(f"{url} answered with code {error.code}: {said or error.reason}") from None
    except TimeoutError:
        raise ValueError(
            f"{url} took longer than {timeout:g} seconds for {samples} samples; raise --reward-timeout, or"
            " score fewer at a time with --batch"
        ) from None
    except (OSError, HTTPException, ValueError) as error:
        why = getattr(error, "reason", None) or error
        raise ValueError(f"{url} cannot be asked: {why or type(error).__name__}") from None


def _conditions(cond: Cond) -> dict[str, Any]:
    """What JSON can hold of the conditions; of tensors their numbers."""
    found = {name: x.tolist() if isinstance(x, Tensor) else x for name, x in cond.items()}
    return {name: x for name, x in found.items() if _is_json(x)}


def _is_json(x: Any) -> bool:
    try:
        json.dumps(x)
    except (TypeError, ValueError):
        return False
    return True


def _read(answer: HTTPResponse, end: float) -> bytes:
    """All of an answer, if it comes in time, however slowly it drips."""
    content = b""
    while part := answer.read1(PART):
        content += part
        if time.monotonic() > end:
            raise TimeoutError
        if len(content) > MOST:
            raise ValueError(f"its answer is longer than {MOST >> 20} MiB")
    return content


def _numbers(content: bytes, count: int, url: str) -> list[float]:
    shown = content[:60].decode(errors="replace")
    try:
        answer = json.loads(content, parse_int=float)
    except (ValueError, RecursionError):
        answer = None
    found = answer.get("rewards") if isinstance(answer, dict) else None
    if not isinstance(found, list) or len(found) != count:
        raise ValueError(
            f"{url} got {count} samples and answered {shown!r}; it must answer"
            ' {"rewards": [...]} with a number or null for each'
        )
    if any(not isinstance(x, float | None) for x in found):
        raise ValueError(f"{url} answered {shown!r}, where a reward must be a number or null")
    return [float("nan") if x is None else x for x in found]
