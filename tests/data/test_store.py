"""Files as they lie on a disk: packed or not, damaged, or no table at all."""

import gzip
from pathlib import Path

import pytest

from difftilt.data.read import contents
from difftilt.data.store import locate, naming, numbers, read_table, root


def written(folder: Path, content: bytes) -> Path:
    path = folder / "table"
    path.write_bytes(content)
    return path


def test_packed_and_plain_files_read_alike(tmp_path: Path):
    text = b"a,b\n1,2\n"
    assert contents(written(tmp_path, text)) == contents(written(tmp_path, gzip.compress(text))) == text


def test_columns_are_found_by_name_and_a_name_that_stands_twice_twice(tmp_path: Path):
    path = written(tmp_path, b"8-mer\tz\t8-mer\nA\t0\tT\nC\t1\tG\n")
    assert read_table(path, ("8-mer", "8-mer", "z")) == [["A", "C"], ["T", "G"], ["0", "1"]]


@pytest.mark.parametrize(
    "content",
    [
        b"a,b\n1,2\n3,4\n",
        b"a;b\n1;2\n3;4\n",
        b"a\tb\r\n1\t2\r\n3\t4",
        b"a,b\n1,2\n3,4\n\n\r\n",
        b'c,b,a\n"x, y",2,1\n,4,3\n',
        "a,b\n1,2\n3,4\n".encode("utf-8-sig"),
        "a,b\n1,2\n3,4\n".encode("utf-16"),
        b"\xfe\xff" + "a\tb\r\n1\t2\r\n3\t4\r\n".encode("utf-16-be"),
    ],
    ids=["commas", "semicolons", "tabs", "blank end", "other columns", "marked", "16 bits", "other order"],
)
def test_tables_are_read_however_a_spreadsheet_writes_them(tmp_path: Path, content: bytes):
    for form in (content, gzip.compress(content)):
        assert read_table(written(tmp_path, form), ("a", "b")) == [["1", "3"], ["2", "4"]]


def test_a_table_of_another_kind_is_told_what_is_expected(tmp_path: Path):
    for content in (b">v0 fitness=1.5\nTSKG\n", b"mutant,mutated_sequence,DMS_score\nV39T,MQY,1.5\n"):
        with pytest.raises(ValueError) as error:
            read_table(written(tmp_path, content), ("sequences", "fitness"))
        header = content.decode().splitlines()[0]
        assert str(error.value) == (
            f"there is no column sequences: the header is {header!r}, but a table with the columns sequences,"
            " fitness is expected"
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"a,b\n1,2\n" * 99)[:-9], "the file is damaged"),
        (b"\x1f\x8bnothing", "the file is damaged"),
        (b"\xff\xfe\x00", "the file holds no text"),
        (b'a,b\n"' + b"x" * 200_000, "the file holds no text, but a table is expected"),
        (b"", "there is no column a: the header is ''"),
        (b"a,c\n1,2\n", "there is no column b: the header is 'a,c'"),
        (b"a,b\n", "there are no rows below the header"),
        (b"a,b\n1,2\n\n3,4\n", "row 3 has 0 cells, but the header has 2"),
        (b"a,b\n1,2\n3\n", "row 3 has 1 cells, but the header has 2"),
        (b"a,b\n1,2,3\n", "row 2 has 3 cells, but the header has 2"),
    ],
    ids=["truncated", "garbage", "binary", "endless", "empty", "column", "rows", "blank", "few", "many"],
)
def test_what_is_no_table_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str):
    path = written(tmp_path, content)
    with pytest.raises(ValueError) as error, naming(path):
        read_table(path, ("a", "b"))
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_number_out_of_range_is_named():
    assert numbers(["1", "-2e3"], "load") == [1, -2000]
    with pytest.raises(ValueError, match="row 3 has the load '-1', but a finite number of at least 0 is"):
        numbers(["1", "-1"], "load", least=0)


def test_the_variable_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DIFFTILT_DATA", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert root() == Path("/home/someone/.cache/difftilt/data")
    monkeypatch.setenv("DIFFTILT_DATA", str(tmp_path))
    assert root() == tmp_path
    with pytest.raises(ValueError, match="difftilt data fetch gb1"):
        locate("gb1", "table")
    (tmp_path / "gb1").mkdir()
    path = written(tmp_path / "gb1", b"")
    assert locate("gb1", "table") == path
