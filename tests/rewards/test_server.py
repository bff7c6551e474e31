"""Rewards that a server computes: what it is sent, and whatever it may answer."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from typing import Any

import pytest
import torch
from PIL import Image

from difftilt.conditions import unconditional
from difftilt.experiment.reward import find_reward
from difftilt.guard import Guard
from difftilt.rewards.judge import KEY, JudgeReward
from difftilt.rewards.server import ServerReward


class Handler(BaseHTTPRequestHandler):
    """Remembers what it got, and answers what it was told to."""

    server: Any

    def do_POST(self) -> None:
        self.server.got = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.key = self.headers.get("Authorization")
        code, parts, pause = self.server.answer
        self.send_response(code)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)
            self.wfile.flush()
            time.sleep(pause)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def running():
    server: Any = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def reward(server: Any, answer: Any, *, code: int = 200, pause: float = 0, spell: Any = None) -> ServerReward:
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    server.answer = code, [content] if not pause else [bytes([b]) for b in content], pause
    return ServerReward(f"http://127.0.0.1:{server.server_port}/score", spell, 0.5)


def test_numbers_texts_and_images_arrive_as_they_are(running):
    tokens = torch.tensor([[1, 2], [3, 0]])
    cond = {"prompt": ["a", "b"], "label": torch.tensor([4, 5]), "object": [object()] * 2}
    assert reward(running, {"rewards": [1, 2.5]})(tokens, cond).tolist() == [1, 2.5]
    assert running.got == {"samples": [[1, 2], [3, 0]], "conditions": {"prompt": ["a", "b"], "label": [4, 5]}}
    reward(running, {"rewards": [1, 2]}, spell=lambda x: ["AC", "GT"])(tokens, cond)
    assert running.got["samples"] == ["AC", "GT"]
    image = torch.rand(1, 3, 2, 4)
    for sample in (image, image[None]):
        reward(running, {"rewards": [1]})(sample, unconditional(1))
        (sent,) = running.got["samples"] if sample.ndim == 4 else running.got["samples"][0]
        pixels = Image.open(BytesIO(base64.b64decode(sent.removeprefix("data:image/png;base64,"))))
        assert list(pixels.get_flattened_data()) == [
            tuple(x) for x in (image[0] * 255).round().int().permute(1, 2, 0).reshape(-1, 3).tolist()
        ]


def test_null_is_a_sample_without_a_reward(running):
    guard = Guard(reward(running, {"rewards": [None, 2]}), on_error="drop")
    assert guard(torch.zeros(2, 1), unconditional(2))[1] == 2 and 0 in guard.reasons


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"rewards": [1]}, "got 2 samples and answered '{\"rewards\": \\[1\\]}'"),
        ([1, 2], "it must answer"), (b"", "it must answer"), (b"\xff\xfe", "it must answer"),
        ({"rewards": "12"}, "it must answer"), ({"rewards": [1, "2"]}, "must be a number or null"),
        ({"rewards": [True, 2]}, "must be a number or null"), (b"[" * 100_000, "it must answer"),
    ],
)  # fmt: skip
def test_other_answers_are_refused_in_a_sentence(running, answer, said):
    with pytest.raises(ValueError, match=said):
        reward(running, answer)(torch.zeros(2, 1), unconditional(2))


def test_enormous_numbers_are_none(running):
    content = b'{"rewards": [1' + b"0" * 400 + b", 1]}"
    assert reward(running, content)(torch.zeros(2, 1), unconditional(2)).isfinite().tolist() == [False, True]


def test_a_server_that_fails_drips_or_is_not_there_is_told(running):
    x, cond = torch.zeros(1, 1), unconditional(1)
    with pytest.raises(ValueError, match="answered with code 500: no such model"):
        reward(running, b"no such\nmodel", code=500)(x, cond)
    with pytest.raises(ValueError, match=r"took longer than 0.5 seconds for 1 samples; raise --reward-time"):
        reward(running, {"rewards": [1]}, pause=0.1)(x, cond)
    with pytest.raises(ValueError, match="cannot be asked"):
        ServerReward("http://127.0.0.1:9/score", None, 5)(x, cond)
    with pytest.raises(ValueError, match="cannot be asked"):
        ServerReward("http://no such host/", None, 5)(x, cond)


def test_a_url_names_a_reward_and_its_port_is_no_weight():
    several = find_reward("http://localhost:8000:0.5 + http://h:80/x@linear(0,2)", {}, None, 1)
    assert isinstance(several, list)
    first, second = several
    assert (first.name, first.weight, second.name) == ("http://localhost:8000", 0.5, "http://h:80/x")
    found = find_reward("https://localhost:8000", {}, None, 1)
    assert isinstance(found, ServerReward) and found.url == "https://localhost:8000"


def judge(server: Any, text: Any, spell: Any = None) -> Any:
    """A reward that asks a model which says a text, or that gets something else altogether."""
    answer = (
        {"choices": [{"message": {"role": "assistant", "content": text}}]} if isinstance(text, str) else text
    )
    server.answer = 200, [json.dumps(answer).encode()], 0
    url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions#org/model-7b"
    return find_reward(url, {}, spell, 0.5)


def test_a_model_is_shown_each_sample_and_asked_about_it(running, monkeypatch):
    monkeypatch.delenv(KEY, raising=False)
    reward = judge(running, "I would say 7.5 of 10.")
    assert isinstance(reward, JudgeReward)
    assert reward(torch.rand(2, 3, 4, 4), {"prompt": ["a cat", "a dog"]}).tolist() == [7.5, 7.5]
    assert running.got["model"] == "org/model-7b" and running.got["temperature"] == 0 and running.key is None
    (message,) = running.got["messages"]
    question, shown = message["content"]
    assert question["text"].endswith("Asked for was: a dog")
    assert shown["image_url"]["url"].startswith("data:image/png;base64,")
    monkeypatch.setenv(KEY, "secret")
    reward(torch.rand(1, 9, 3, 4, 4), {"question": ["Is it red? 1 or 0"]})  # a video
    assert running.key == "Bearer secret"
    question, *frames = running.got["messages"][0]["content"]
    assert question["text"] == "Is it red? 1 or 0" and len(frames) == 4
    judge(running, "-2", spell=lambda x: ["ACGT"])(torch.zeros(1, 4).long(), unconditional(1))
    assert running.got["messages"][0]["content"][1] == {"type": "text", "text": "ACGT"}


def test_a_judge_that_says_no_number_gives_no_reward(running):
    guard = Guard(judge(running, "I cannot see it."), on_error="drop")
    assert guard(torch.rand(2, 3, 4, 4), unconditional(2)).isnan().all()


@pytest.mark.parametrize("answer", [{"rewards": [1]}, {"choices": []}, [1], {"choices": [{"message": {}}]}])
def test_what_is_no_chat_completion_is_refused_in_a_sentence(running, answer):
    with pytest.raises(ValueError, match="which is no chat completion"):
        judge(running, answer)(torch.rand(1, 3, 4, 4), {"prompt": ["a"]})
