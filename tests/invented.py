"""Invented data in the shape of real ones that the repository does not hold."""

import gzip
import itertools
import random
from pathlib import Path

import numpy as np

from difftilt.data.landscape import GB1
from difftilt.data.libraries import UTR
from difftilt.data.vocabulary import PROTEIN

HEADS = ("CC", "COC", "NC(=O)C", "FC", "C#CC", "OC(C)C")
RINGS = ("c1ccccc1", "c1ccncc1", "C1CCNCC1", "c1ccc2[nH]ccc2c1")
TAILS = ("C(=O)O", "CCl", "C(F)(F)F", "OC")
MOLECULES = ["".join(parts) for parts in itertools.product(HEADS, RINGS, TAILS)]


def utrs(data: Path) -> None:
    """700 UTRs: the more G, the higher the load."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 4, (700, 50), dtype=np.uint8)
    y = (4 + 10 * (x == 2).mean(1) + 0.1 * rng.standard_normal(700)).astype(np.float32)
    (data / "utr").mkdir(parents=True)
    np.savez(data / "utr" / UTR, x=x, y=y, alphabet=np.array(list("ACGT")))


def gb1(data: Path) -> None:
    """3,000 of the 160,000 variants: the more tryptophan, the fitter."""
    rng = random.Random(0)
    words = {"".join(rng.choices(PROTEIN, k=4)) for _ in range(3000)}
    rows = [f"{word},{word.count('W') + rng.random():.4f}" for word in sorted(words)]
    (data / "gb1").mkdir(parents=True)
    (data / "gb1" / GB1).write_bytes(gzip.compress("\n".join(["sequences,fitness", *rows]).encode()))


def assay(path: Path, count: int = 300) -> Path:
    """DNA of 5 to 8 small letters: G or C and A or T in turn; the longer, the better."""
    rng = random.Random(0)
    words = []
    for _ in range(count):
        pairs = [rng.choice("gc") + rng.choice("at") for _ in range(4)]
        words.append("".join(pairs)[: rng.randint(5, 8)])
    rows = [f"{word};{len(word) + rng.random():.4f}".replace(".", ",") for word in words]
    path.write_text("\n".join(["construct;read-out", *rows]))
    return path
