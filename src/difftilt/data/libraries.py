"""Large sets of examples: measured 5' UTRs, and drug-like molecules."""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from difftilt.data.alphabet import DNA, encode
from difftilt.data.store import locate, numbers, read_table
from difftilt.settings import check_value
from difftilt.shapes import PerSample, Tokens

UTR, UTR_LENGTH, UTR_ROWS = "utr_mrl_280k.npz", 50, 280_000
Split = Literal["train", "test", "test_scaffolds"]
SPLITS: tuple[str, ...] = get_args(Split)


def load_utr() -> tuple[Tokens, PerSample]:
    """5' UTRs in letters ACGT (T for U), and the mean number of ribosomes on each.

    Source:
        Sample et al., Nature Biotechnology 2019, GEO GSE114002. https://doi.org/10.1038/s41587-019-0164-5
    """
    return read_utr(locate("utr", UTR))


def read_utr(path: Path) -> tuple[Tokens, PerSample]:
    """The arrays of an npz: `x`, tokens of one UTR per row; `y`, its load; `alphabet`, ACGT."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            x, y, alphabet = arrays["x"], arrays["y"], "".join(arrays["alphabet"])
    except (
        ValueError,
        KeyError,
        OSError,
        EOFError,
        TypeError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        raise ValueError(f"{path} is no npz with the arrays x, y and alphabet, or it is damaged") from None
    if alphabet != DNA or x.ndim != 2 or x.shape[1:] != (UTR_LENGTH,) or y.shape != x.shape[:1]:
        raise ValueError(
            f"{path} has x of shape {x.shape}, y of shape {y.shape} and letters {alphabet}, but (n, {UTR_LENGTH}),"
            f" (n,) and {DNA} are expected"
        )
    bad = ((x < 0) | (x >= len(DNA))).any(1) | ~np.isfinite(y)
    if bad.any():
        raise ValueError(f"row {bad.argmax() + 1} of {path} holds a token above 3, or no finite load")
    return torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.float32))


def pack_utr(path: Path) -> bytes:
    """What `read_utr` reads: the npz itself, or one made of GEO's table GSM3130435_egfp_unmod_1.csv.gz.

    Of the table, the 280,000 UTRs with the most reads are kept, as in the paper.
    """
    if zipfile.is_zipfile(path):
        return path.read_bytes()
    utrs, reads, loads = read_table(path, ("utr", "total_reads", "rl"))
    count, load = (np.array(numbers(c, path, n)) for c, n in ((reads, "total_reads"), (loads, "rl")))
    most = np.argsort(-count, kind="stable")[:UTR_ROWS]
    try:
        x = encode([utrs[i] for i in most], DNA, UTR_LENGTH)
    except ValueError as error:
        raise ValueError(f"of the rows of {path} with the most reads, {error}") from None
    packed = io.BytesIO()
    np.savez_compressed(
        packed, x=x.numpy().astype(np.uint8), y=load[most].astype(np.float32), alphabet=np.array(list(DNA))
    )
    return packed.getvalue()


def load_moses(split: Split) -> list[str]:
    """SMILES of drug-like molecules.

    Source:
        Polykovskiy et al., Frontiers in Pharmacology 2020. https://doi.org/10.3389/fphar.2020.565644
    """
    check_value("split", split, Split)
    return read_smiles(locate("moses", f"{split}.csv.gz"))


def read_smiles(path: Path) -> list[str]:
    """The column SMILES of a table."""
    (smiles,) = read_table(path, ("SMILES",))
    if not smiles:
        raise ValueError(f"{path} holds no SMILES below its header")
    for row, line in enumerate(smiles, 2):
        if not line or line.strip() != line:
            raise ValueError(f"row {row} of {path} holds {line[:60]!r}, but a SMILES is expected")
    return smiles
