"""Rewards of images and of what they were asked to show."""

import re
from typing import Any

import numpy as np
import torch

from difftilt.rewards.image import pictures
from difftilt.shapes import Cond, PerSample, Real

QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')  # the text in a prompt that an image is to show


class LegibleText:
    """How much of the wanted text is read in an image: 1 - edits / letters, from 0 to 1; black-box.

    The text is condition `text`, or else what stands in double quotes in the prompt. Capitals, blanks and
    punctuation do not count. The reader, rapidocr, is loaded when it is first asked; its weights come with
    its package.

    Source:
        Liu et al. (2025), Flow-GRPO's text rendering. https://arxiv.org/abs/2505.05470
    """

    def __init__(self):
        self._reader: Any = None

    def __call__(self, sample: Real, cond: Cond) -> PerSample:
        wanted = [_letters(text) for text in wanted_texts(cond)]
        if self._reader is None:
            self._reader = _reader()
        scores = []
        for picture, text in zip(pictures(sample), wanted, strict=True):
            found = self._reader(np.asarray(picture.convert("RGB")))
            read = _letters("".join(found.txts or ()))
            scores.append(max(0.0, 1 - edits(read, text) / len(text)))
        return torch.tensor(scores, dtype=torch.float32, device=sample.device)


def wanted_texts(cond: Cond) -> list[str]:
    """The text that each image is to show.

    Raises:
        ValueError: If one is not said, or has no letter.
    """
    texts = list(cond["text"]) if "text" in cond else [_quoted(prompt) for prompt in cond.get("prompt", ())]
    for text in texts or [""]:
        if not isinstance(text, str) or not _letters(text):
            raise ValueError(
                "reward ocr needs a text to read for each image, in a column `text` or in double quotes in"
                f" the prompt, but got {text!r}"
            )
    return texts


def edits(a: str, b: str) -> int:
    """The least number of letters to insert, delete or replace that makes one text of another."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def _quoted(prompt: str) -> str:
    found = QUOTED.search(prompt)
    return (found[1] or found[2]) if found else ""


def _letters(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _reader() -> Any:
    try:
        import rapidocr  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        message = "reward ocr needs rapidocr; install it with pip install rapidocr onnxruntime"
        raise ImportError(message) from error
    return rapidocr.RapidOCR()
