"""A reward that a server computes: samples go there as JSON, numbers come back as JSON."""

import base64
import json
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from difftilt.rewards.image import encoded, pictures
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
        request = Request(self.url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self._timeout) as answer:
                content = _read(answer, time.monotonic() + self._timeout)
        except HTTPError as error:
            said = " ".join(error.read(200).decode(errors="replace").split())
            raise ValueError(f"{self.url} answered with code {error.code}: {said or error.reason}") from None
        except TimeoutError:
            raise ValueError(
                f"{self.url} took longer than {self._timeout:g} seconds for {len(sample)} samples; raise"
                " --reward-timeout, or score fewer at a time with --batch"
            ) from None
        except (OSError, HTTPException, ValueError) as error:
            why = getattr(error, "reason", None) or error
            raise ValueError(f"{self.url} cannot be asked: {why or type(error).__name__}") from None
        return torch.tensor(_numbers(content, len(sample), self.url), dtype=torch.float64)

    def _written(self, sample: Sample) -> list[Any]:
        if self._spell is not None:
            return self._spell(sample)
        if sample.is_floating_point() and sample.ndim == 5:
            return [_pngs(video) for video in sample]
        if sample.is_floating_point() and sample.ndim == 4 and sample.shape[1] in (1, 3):
            return _pngs(sample)
        return sample.tolist()


def _pngs(images: Tensor) -> list[str]:
    files = [base64.b64encode(encoded(picture, "PNG")).decode() for picture in pictures(images)]
    return [f"data:image/png;base64,{file}" for file in files]


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
