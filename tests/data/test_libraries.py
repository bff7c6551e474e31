"""Sets of UTRs and of molecules, and the table that UTRs are published as."""

import gzip
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from difftilt.data.libraries import load_moses, pack_utr, read_smiles, read_utr

X = np.random.default_rng(0).integers(0, 4, (5, 50)).astype(np.uint8)
SOUND = {"x": X, "y": np.linspace(0, 8, 5).astype(np.float32), "alphabet": np.array(list("ACGT"))}


def npz(folder: Path, **arrays: Any) -> Path:
    path = folder / "utr.npz"
    np.savez_compressed(path, **arrays)
    return path


def test_utrs_are_tokens_and_loads(tmp_path: Path):
    x, y = read_utr(npz(tmp_path, **SOUND))
    assert (x.dtype, y.dtype) == (torch.int64, torch.float32)
    assert x.tolist() == X.tolist()
    assert y.tolist() == [0, 2, 4, 6, 8]


def broken(**changes: Any) -> dict[str, Any]:
    return SOUND | changes


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "an npz with arrays x, y and alphabet is expected"),
        (broken(x=np.array([{}], dtype=object)), "an npz with arrays"),
        (broken(alphabet=np.array(list("ACGU"))), "x is uint8[5, 50], y float32[5] and the alphabet ACGU"),
        (broken(x=X[:, :49]), "x is uint8[5, 49]"),
        (broken(x=X.astype(float)), "x is float64[5, 50]"),
        (broken(y=np.zeros(4)), "x is uint8[5, 50], y float64[4]"),
        (broken(y=np.array(list("12345"))), "x is uint8[5, 50], y <U1[5]"),
        (broken(y=np.array([1, 2, np.nan, 4, 5])), "row 3 holds"),
        (broken(x=np.where(np.arange(5)[:, None] == 3, 4, X)), "row 4 holds"),
    ],
    ids=["missing", "objects", "letters", "length", "floats", "rows", "words", "nan", "token"],
)
def test_bad_utrs_are_refused(tmp_path: Path, arrays: dict[str, Any], message: str):
    path = npz(tmp_path, **arrays)
    with pytest.raises(ValueError) as error:
        read_utr(path)
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no npz"], ids=["empty", "cut", "text"])
def test_what_is_no_npz_is_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "utr.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="an npz with arrays x, y and alphabet is expected, in one piece"):
        read_utr(path)


def test_a_single_array_is_refused(tmp_path: Path):
    single = io.BytesIO()
    np.save(single, X)
    path = tmp_path / "utr.npz"
    path.write_bytes(single.getvalue())
    with pytest.raises(ValueError, match="an npz with arrays"):
        read_utr(path)


def table(folder: Path, rows: list[str]) -> Path:
    path = folder / "GSM3130435_egfp_unmod_1.csv.gz"
    path.write_bytes(gzip.compress("\n".join([",utr,0,total_reads,rl", *rows]).encode()))
    return path


def test_of_the_published_table_the_most_read_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("difftilt.data.libraries.UTR_ROWS", 2)
    source = table(tmp_path, [f"{i},{'ACGTA'[i] * 50},0,{r},{i}.5" for i, r in enumerate((5, 9, 1, 9))])
    packed = tmp_path / "utr.npz"
    packed.write_bytes(pack_utr(source))
    x, y = read_utr(packed)
    assert x[:, 0].tolist() == [1, 3]  # of equal numbers of reads, the first in the table
    assert (x == x[:, :1]).all()
    assert y.tolist() == [1.5, 3.5]
    assert pack_utr(packed) == packed.read_bytes()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"0,{'N' * 50},0,1,1.5", "row 2 holds 'N'"),
        (f"0,{'A' * 49},0,1,1.5", "row 2 "),
        (f"0,{'A' * 50},0,,1.5", "row 2 has the total_reads ''"),
        (f"0,{'A' * 50},0,1,", "row 2 has the rl ''"),
    ],
    ids=["letter", "length", "reads", "load"],
)
def test_a_bad_row_of_the_published_table_is_named(tmp_path: Path, row: str, message: str):
    source = table(tmp_path, [row])
    with pytest.raises(ValueError) as error:
        pack_utr(source)
    assert str(error.value).startswith(f"{source}: {message}")


def test_smiles_are_read_however_an_editor_writes_them(tmp_path: Path):
    path = tmp_path / "train.csv"
    for end, encoding in (("\n", "utf-8"), ("\n\n", "utf-8-sig"), ("", "utf-16"), ("\r\n", "utf-8")):
        path.write_bytes(f"SMILES\nC\nCCO{end}".encode(encoding))
        assert read_smiles(path) == ["C", "CCO"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a header SMILES"),
        ("SMILES\n", "a header SMILES"),
        ("CCO\nC\n", "a header SMILES"),
        ("SMILES\nC\n\nCC\n", "row 3 holds ''"),
        ("SMILES\nC\nCC O\nCC \n", "row 4 holds 'CC '"),
    ],
    ids=["empty", "none", "header", "blank", "space"],
)
def test_what_holds_no_smiles_is_refused(tmp_path: Path, text: str, message: str):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        read_smiles(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_split_is_a_list_of_smiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DIFFTILT_DATA", str(tmp_path))
    (tmp_path / "moses").mkdir()
    (tmp_path / "moses" / "test.csv.gz").write_bytes(gzip.compress(b"SMILES\nCCO\nc1ccccc1\n"))
    assert load_moses("test") == ["CCO", "c1ccccc1"]
    with pytest.raises(ValueError, match="difftilt data fetch moses"):
        load_moses("train")
