"""Makes the table of SIX6 that ships with the package: python benchmarks/six6_table.py SOURCE

SOURCE is SIX6_REF_R1_8mers.txt, packed by gzip or not, which `difftilt data fetch tfbind8` brings. E-scores
have five digits, so that whole numbers of 1e-5 keep them exactly. The table has one for each 8-mer and its
reverse complement, in the order of the one that sorts first.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file

from difftilt.data.landscape import SIX6, read_tfbind8
from difftilt.data.read import contents
from difftilt.data.store import numbers, read_table


def main(source: Path, out: Path) -> None:
    read_tfbind8("six6", source)  # refuses a table with bad rows or holes
    words, _, cells = read_table(source, ("8-mer", "8-mer", "E-score"))
    if words != sorted(words):
        raise ValueError(f"the rows of {source} are not in alphabetical order")
    scores = torch.tensor(numbers(cells, "E-score"), dtype=torch.float64)
    whole = (scores * 1e5).round().int()
    if not torch.equal(whole.double() / 1e5, scores):
        raise ValueError(f"the E-scores of {source} have more than five digits")
    digest = hashlib.sha256(contents(source)).hexdigest()
    save_file({"e_score": whole}, out, {"source": f"E-scores in 1e-5 of the text with sha256 {digest}"})
    made = hashlib.sha256(out.read_bytes()).hexdigest()
    print(f"{len(whole)} rows, {out.stat().st_size} bytes, sha256 {made}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=SIX6)
    main(**vars(parser.parse_args()))
