"""Large sets of examples: measured 5' UTRs, and drug-like molecules."""

import io
import zipfile
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from difftilt.data.read import packed_text, read_arrays, read_bytes
from difftilt.data.store import locate, naming, numbers, read_table
from difftilt.data.vocabulary import DNA, encode
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
    with naming(path):
        x, y, letters = read_arrays(path, ("x", "y", "alphabet")).values()
        alphabet = "".join(map(str, letters.flat))
        shapes = x.ndim == 2 and x.shape[1] == UTR_LENGTH and y.shape == x.shape[:1]
        if not shapes or x.dtype.kind not in "iu" or y.dtype.kind != "f" or alphabet != DNA:
            raise ValueError(
                f"x is {x.dtype}{list(x.shape)}, y {y.dtype}{list(y.shape)} and the alphabet {alphabet}, but"
                f" whole numbers [n, {UTR_LENGTH}], real numbers [n] and {DNA} are expected"
            )
        bad = ((x < 0) | (x >= len(DNA))).any(1) | ~np.isfinite(y)
        if bad.any():
            raise ValueError(f"row {bad.argmax() + 1} holds a token that is not 0 to 3, or no finite load")
        return torch.from_numpy(x.astype(np.int64)), torch.from_numpy(y.astype(np.float32))


def pack_utr(path: Path) -> bytes:
    """What `read_utr` reads: the npz itself, or one made of GEO's table GSM3130435_egfp_unmod_1.csv.gz.

    Of the table, the 280,000 UTRs with the most reads are kept, as its authors do.
    """
    if zipfile.is_zipfile(path):
        return read_bytes(path)
    with naming(path):
        utrs, reads, loads = read_table(path, ("utr", "total_reads", "rl"))
        count, load = (
            np.array(numbers(cells, name)) for cells, name in ((reads, "total_reads"), (loads, "rl"))
        )
        x = encode(utrs, DNA, UTR_LENGTH, first=2).numpy().astype(np.uint8)
    most = np.argsort(-count, kind="stable")[:UTR_ROWS]
    packed = io.BytesIO()
    np.savez_compressed(packed, x=x[most], y=load[most].astype(np.float32), alphabet=np.array(list(DNA)))
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
    with naming(path):
        header, *smiles = packed_text(path).splitlines() or [""]
        if header != "SMILES" or not smiles:
            raise ValueError(f"a header SMILES with a molecule per row is expected, but got {header[:80]!r}")
        for row, line in enumerate(smiles, 2):
            if not line or line.strip() != line:
                raise ValueError(f"row {row} holds {line[:60]!r}, but a SMILES is expected")
        return smiles
