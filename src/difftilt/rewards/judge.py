"""A model of language and vision as a judge, behind an endpoint that speaks as OpenAI's chat completions."""

import json
import os
import re
from collections.abc import Callable
from typing import Any

import torch

from difftilt.rewards.image import pngs
from difftilt.rewards.server import posted
from difftilt.shapes import Cond, PerSample, Sample

PATH = "/chat/completions"  # ends the address of such an endpoint
KEY = "DIFFTILT_JUDGE_KEY"  # the variable of the environment that holds the key of a server that wants one
FRAMES = 4  # of a video that are shown
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
QUESTION = (
    "How well does this show what was asked for, from 0 for not at all to 10 for perfectly? Answer with a"
    " number and nothing else. Asked for was: {prompt}"
)


class JudgeReward:
    """The number that a model answers when it is shown a sample and asked about it; black-box.

    It posts one request per sample, with temperature 0. What is asked is the sample's condition `question`,
    or else how well it shows the prompt, 0 to 10. The reward is the first number of the answer; a sample
    whose answer has none has no reward.

    Args:
        url: Such as http://localhost:8000/v1/chat/completions#NAME, where NAME is the model to be asked.
        spell: Writes samples as text, if they are text.
        timeout: Seconds that one answer may take, above 0.

    Raises:
        ValueError: When it is called, if the server cannot be reached, takes too long, or answers anything
            else.
    """

    def __init__(self, url: str, spell: Callable[[Sample], list[str]] | None, timeout: float):
        self._url, _, self._model = url.partition("#")
        self._spell, self._timeout, self.__name__ = spell, timeout, url

    def __call__(self, sample: Sample, cond: Cond) -> PerSample:
        prompts = cond.get("prompt", [""] * len(sample))
        questions = cond.get("question", [QUESTION.format(prompt=prompt) for prompt in prompts])
        answers = [
            self._answer([{"type": "text", "text": str(question)}, *shown])
            for question, shown in zip(questions, self._shown(sample), strict=True)
        ]
        return torch.tensor(answers, dtype=torch.float64)

    def _shown(self, sample: Sample) -> list[list[dict[str, Any]]]:
        """The parts of a message that show each sample."""
        if self._spell is not None:
            return [[{"type": "text", "text": text}] for text in self._spell(sample)]
        videos = sample if sample.ndim == 5 else sample[:, None]
        few = torch.linspace(0, videos.shape[1] - 1, min(FRAMES, videos.shape[1])).round().long()
        return [
            [{"type": "image_url", "image_url": {"url": url}} for url in pngs(video[few.to(video.device)])]
            for video in videos
        ]

    def _answer(self, content: list[dict[str, Any]]) -> float:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": content}], "temperature": 0}
        if self._model:
            asked["model"] = self._model
        key = os.environ.get(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        said = posted(self._url, asked, self._timeout, 1, headers)
        try:
            text = json.loads(said)["choices"][0]["message"]["content"]
            found = NUMBER.search(text)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            raise ValueError(
                f"{self._url} answered {said[:60].decode(errors='replace')!r}, which is no chat completion"
            ) from None
        return float(found[0]) if found else float("nan")
