"""Encodings of prompts: one per prompt, joined as a pipeline would, and forgotten when they are many."""

import pytest
import torch

from difftilt.domains.diffusers.prompts import Ragged, RememberedPrompts


def encoder(room: int = 2**20) -> tuple[RememberedPrompts, list[str]]:
    asked = []

    def encode(prompt, negative_prompt=None, scale=1.0):
        asked.append(prompt)
        rows = torch.full((1, len(prompt), 2), scale)
        return rows, None if negative_prompt is None else -rows, torch.zeros(3, 2), [rows[0]]

    return RememberedPrompts(encode, room), asked


def test_each_prompt_is_encoded_once_whatever_the_batch():
    encode, asked = encoder()
    rows, negative, shared, listed = encode(["ab", "cd", "ab"], scale=2.0)
    assert asked == ["ab", "cd"]
    assert rows.shape == (3, 2, 2) and negative is None and shared.shape == (3, 2) and len(listed) == 3
    encode(prompt=["cd", "ab"], scale=2.0)
    assert len(asked) == 2
    encode(["ab"], scale=3.0)
    encode(["ab"], ["fog"], scale=3.0)
    assert encode(["ab", "ab"], ["fog", "rain"], scale=3.0)[1].shape == (2, 2, 2)
    assert len(asked) == 5  # other settings, and other negative prompts, are other encodings
    assert encode("ab", scale=2.0)[0].shape == (1, 2, 2)


def test_prompts_of_other_shapes_are_told():
    encode, _ = encoder()
    with pytest.raises(Ragged):
        encode(["ab", "abc"])


def test_the_longest_unused_is_forgotten_where_there_is_no_room():
    one = 2 * (2 * 2 * 4) + 3 * 2 * 4  # bytes of what a prompt of two letters makes
    encode, asked = encoder(2 * one)
    encode(["ab"])
    encode(["cd"])
    encode(["ab"])
    encode(["ef"])  # in the place of cd
    assert asked == ["ab", "cd", "ef"]
    encode(["ab"])
    assert len(asked) == 3
    encode(["cd"])
    assert asked[3:] == ["cd"]
    assert encode(["gh", "ij", "kl"])[0].shape == (3, 2, 2)  # a batch larger than the room goes through
