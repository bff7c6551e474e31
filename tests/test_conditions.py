"""Conditions hold one entry per sample, of any type, and stay with their samples."""

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from difftilt.conditions import (
    batch_size,
    concat,
    context,
    context_keys,
    copied,
    on_device_of,
    repeat,
    take,
)
from difftilt.training.tree import pack, unpack


@dataclasses.dataclass
class Note:
    text: str
    marks: list[int]


class Opaque:
    pass


HELD = Opaque()
# the first and the third entry are equal, the second is another
ENTRIES: dict[str, Any] = {
    "texts": ["a", "b", "a"],
    "tensor": torch.tensor([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0]]),
    "half": torch.tensor([1.0, 2.0, 1.0], dtype=torch.bfloat16),
    "array": np.array([1, 2, 1]),
    "array of texts": np.array(["a", "b", "a"]),
    "column": pd.Series(["a", "b", "a"], index=[7, 8, 9]),
    "tuple": ("a", 1, "a"),
    "dicts": [{"n": 1, "box": [1, 2]}, {"n": 1, "box": [2, 1]}, {"box": [1, 2], "n": 1}],
    "arrays": [np.zeros(2), np.ones(2), np.zeros(2)],
    "tensors": [{"x": torch.zeros(2)}, {"x": torch.zeros(2, 1)}, {"x": torch.zeros(2)}],
    "notes": [Note("a", [1]), Note("a", [2]), Note("a", [1])],
    "sets": [{1, 2}, {1, 3}, {2, 1}],
    "missing": [None, "None", None],
    "numbers and texts": [1, "1", 1],
    "nested": [[1], ["1"], [1]],
    "objects": [HELD, Opaque(), HELD],
    "tables": [pd.DataFrame({"x": [1]}), pd.DataFrame({"x": [2]}), pd.DataFrame({"x": [1]})],
}


def as_texts(value: Any) -> list[str]:
    return [str(item) for item in value]


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_of_any_type_are_selected_joined_and_compared(name: str):
    cond = {"label": torch.tensor([5, 5, 5]), name: ENTRIES[name]}
    assert context(cond).tolist() == [0, 1, 0]
    entries = as_texts(ENTRIES[name])
    assert as_texts(take(cond, torch.tensor([2, 1]))[name]) == [entries[2], entries[1]]
    assert as_texts(repeat(cond, 2)[name]) == [text for text in entries for _ in range(2)]
    together = concat([cond, take(cond, torch.tensor([1]))])
    assert as_texts(together[name]) == [*entries, entries[1]]
    assert context(together).tolist() == [0, 1, 0, 1]
    assert batch_size(on_device_of(torch.nn.Linear(1, 1), cond)) == 3


@pytest.mark.parametrize(
    "name", [name for name in ENTRIES if name not in ("notes", "sets", "objects", "tables")]
)
def test_what_is_remembered_of_conditions_survives_a_checkpoint(name: str):
    cond = {name: take({name: ENTRIES[name]}, torch.arange(3))[name]}
    assert context_keys(unpack(pack(cond)), lasting=True) == context_keys(cond, lasting=True)


def test_a_mapping_of_the_users_is_not_taken_for_a_tensor():
    cond = {"meta": [{"__tensor__": "x", "__items__": 1}, {"__array__": 2}]}
    assert unpack(pack(cond)) == cond


def test_objects_of_unknown_content_are_refused_where_they_must_be_recognised_later():
    cond = {"who": [HELD]}
    assert context(cond).tolist() == [0]
    with pytest.raises(ValueError, match="got a Opaque of unknown content in condition 'who'"):
        context_keys(cond, lasting=True)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({}, "got a condition without entries"),
        ({"prompt": "a cat"}, "got a str as condition 'prompt'"),
        ({"meta": {"n": 1}}, "got a dict as condition 'meta'"),
        ({"a": [1, 2], "b": None}, "got a NoneType as condition 'b'"),
        ({"a": torch.tensor(1)}, "got a Tensor as condition 'a'"),
        ({"a": {1, 2}}, "got a set as condition 'a'"),
        ({"a": [1, 2], "b": torch.zeros(3)}, "got 2 entries in condition 'a', but 3 in 'b'"),
    ],
)
def test_what_holds_no_entry_per_sample_is_refused(cond: dict[str, Any], message: str):
    for asked in (batch_size, lambda cond: on_device_of(torch.nn.Linear(1, 1), cond)):
        with pytest.raises(ValueError, match=message):
            asked(cond)


def test_batches_of_other_conditions_are_not_joined_in_part():
    with pytest.raises(ValueError, match=r"conditions \['a'\] and \['a', 'b'\]"):
        concat([{"a": [1]}, {"a": [1], "b": [2]}])


def test_changing_a_copy_changes_nothing_else():
    cond = {
        "x": torch.zeros(1),
        "y": np.zeros(1),
        "meta": [{"list": [1], "array": np.zeros(1), "tensor": torch.zeros(1), "set": {1}}],
        "objects": np.array([[1]], object),
    }
    before = str(cond)
    twin = dict(copied(cond))
    assert str(twin) == before
    twin["x"] += 1
    twin["y"] += 1
    (inner,) = twin["meta"]
    inner["list"].append(2)
    inner["set"].add(2)
    inner["array"] += 1
    inner["tensor"] += 1
    inner["new"] = 1
    twin["meta"].append({})
    assert str(cond) == before
