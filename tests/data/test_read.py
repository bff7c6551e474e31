"""Whatever stands in a file, or instead of one, is read, or refused in one sentence with its path."""

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import pytest

from difftilt.data import read
from difftilt.data.read import UnreadableError
from difftilt.data.typed import misfit

READERS: dict[str, Callable[[Path], Any]] = {
    "bytes": read.read_bytes,
    "text": read.read_text,
    "json": read.read_json,
    "rows": read.read_rows,
    "cells": read.read_cells,
    "tensors": read.read_tensors,
    "arrays": lambda path: read.read_arrays(path, ("x",)),
    "contents": read.contents,
    "zip": lambda path: read.unzip(path, {"x": path.with_name("unpacked")}),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "link to a pipe", "device"])
def test_what_is_no_file_is_refused_and_nobody_waits_for_it(tmp_path: Path, name: str, kind: str):
    path = tmp_path / "file"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    with pytest.raises(UnreadableError) as error:
        READERS[name](path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


DAMAGED = {
    "json": [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 1000, b'{"a": ' + b"1" * 400 + b"}"],
    "tensors": [b"", b"x" * 100, b"\xff" * 8 + b"{}", b"\x02\0\0\0\0\0\0\0[]"],
    "arrays": [b"", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18],
    "cells": [b"\xff\xfe\0", b'"' + b"x" * 200_000, b"\x1f\x8bnothing"],
    "zip": [b"", b"PK", b"PK\x05\x06" + b"\0" * 18],
}


@pytest.mark.parametrize(("name", "content"), [(name, x) for name, all_ in DAMAGED.items() for x in all_])
def test_damage_is_one_sentence_with_the_path(tmp_path: Path, name: str, content: bytes):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UnreadableError) as error:
        READERS[name](path)
    assert str(path) in str(error.value)[: len(str(path)) + 1] and "\n" not in str(error.value)


def test_a_file_that_is_too_long_is_not_read(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read.read_bytes(path, 100) == b"x" * 100
    with pytest.raises(UnreadableError, match="has 100 bytes, but at most 99 are read"):
        read.read_bytes(path, 99)
    with path.open("wb") as file:
        file.truncate(2**43)  # a hole of 8 TB
    with pytest.raises(UnreadableError, match="bytes, but at most"):
        read.read_json(path)


@pytest.mark.parametrize("shape", ["(10000000000000,)", "(3, 10000000000)"])
def test_an_array_that_claims_more_than_there_is_takes_no_memory(tmp_path: Path, shape: str):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    with zipfile.ZipFile(tmp_path / "file", "w") as archive:
        archive.writestr(
            "x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 80
        )
    with pytest.raises(UnreadableError, match=r"x\.npy claims [\d,]+ bytes, but the archive holds"):
        read.read_arrays(tmp_path / "file", ("x",))


def test_objects_are_not_unpickled(tmp_path: Path):
    packed = io.BytesIO()
    np.savez(packed, x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "file").write_bytes(packed.getvalue())
    with pytest.raises(UnreadableError, match="in one piece"):
        read.read_arrays(tmp_path / "file", ("x",))


def test_what_unpacks_to_too_much_is_refused(tmp_path: Path):
    import gzip

    (tmp_path / "file").write_bytes(gzip.compress(b"\0" * 10_000))
    assert len(read.contents(tmp_path / "file", 10_000)) == 10_000
    with pytest.raises(UnreadableError, match="unpacks to more than the 9,999 bytes"):
        read.contents(tmp_path / "file", 9_999)


class Inner(TypedDict, total=False):
    mean: float | None


class Outer(TypedDict):
    gold: dict[str, Inner]
    pair: tuple[float, float]
    kind: Literal["a", "b"]


GOOD = {"gold": {"x": {"mean": 1}}, "pair": [1, 2.5], "kind": "a", "also": object()}


@pytest.mark.parametrize(
    ("change", "clause"),
    [
        ({"gold": {"x": {"mean": "1"}}}, "gold.x.mean must be a number or null, but got '1'"),
        ({"gold": {"x": {"mean": True}}}, "gold.x.mean must be a number or null, but got True"),
        ({"gold": [1]}, "gold must be an object, but got [1]"),
        ({"pair": [1]}, "pair must be a list of 2, but got [1]"),
        ({"pair": [1, None]}, "pair.1 must be a number, but got null"),
        ({"kind": "c"}, "kind must be 'a' or 'b', but got 'c'"),
    ],
)
def test_a_value_of_another_type_is_named(change: dict[str, Any], clause: str):
    assert misfit(GOOD, Outer) is None
    assert misfit(GOOD | change, Outer) == clause
    assert misfit({"gold": {}, "pair": [1, 2]}, Outer) == "kind must be 'a' or 'b', but got null"
