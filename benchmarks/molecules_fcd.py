"""How far samples of a model of molecules are from MOSES: the Frechet ChemNet distance, FCD.

    pip install --no-deps fcd  # the network: 6 MB, and its weights lie in the wheel
    python benchmarks/molecules_fcd.py [--model FOLDER] [--drawn N] [--references N] [--seed S] [--out FILE]

Preuer et al. (2018), https://arxiv.org/abs/1803.09518: the Frechet distance of normal distributions with the
means and covariances of ChemNet's activations, here between molecules drawn at temperature 1 and MOSES'
`test` and `test_scaffolds`, from neither of which anything was learned. Drawn texts that are no molecule are
left out, as MOSES does. The distance of finite sets is too large, the smaller they are the more: `floor` is
that of as many other molecules of the same set. Errors are the jackknife's, over ten parts of the samples.
Rows of other models and seeds in FILE stay.
"""

import argparse
import json
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from difftilt.data.libraries import Split, load_moses
from difftilt.domains.molecules.card import drawn_in_parts
from difftilt.domains.molecules.model import chain_of, load_molecules
from difftilt.evaluation.estimate import jackknife
from difftilt.experiment.record import write_json
from difftilt.rewards.molecule import read_or_none

OUT = Path(__file__).parent / "results" / "molecules_fcd.json"
PART, PARTS = 200, 10  # molecules that pass at a time, and parts of the jackknife
Activations = np.ndarray[Any, Any]


def drawn(model: Path | None, count: int, seed: int) -> list[str]:
    """Samples of a model as SMILES, those of molecules as RDKit writes them."""
    torch.manual_seed(seed)
    network, writing = load_molecules(model)
    return writing.spell(drawn_in_parts(chain_of(network, writing), count))


class ChemNet:
    """The network of the package fcd."""

    def __init__(self):
        try:
            package, self.utils = import_module("fcd"), import_module("fcd.utils")
        except ImportError:
            raise SystemExit("ChemNet comes with the package fcd: pip install --no-deps fcd") from None
        self.network = package.load_ref_model()

    @torch.no_grad()
    def __call__(self, smiles: Sequence[str]) -> Activations:
        """One row per molecule."""
        data, found = self.utils.SmilesDataset(list(smiles)), []
        for start in range(0, len(data), PART):
            rows = [data[row] for row in range(start, min(start + PART, len(data)))]
            found.append(self.network(torch.from_numpy(np.stack(rows)).float().transpose(1, 2)).double())
        return torch.cat(found).numpy()


def distance(first: Activations, second: Activations) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two sets of rows."""
    cov_1, cov_2 = np.cov(first.T), np.cov(second.T)
    value, vector = np.linalg.eigh(cov_1)
    root = (vector * np.sqrt(value.clip(0))) @ vector.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_2 @ root).clip(0)).sum()
    apart = first.mean(0) - second.mean(0)
    return float(apart @ apart + np.trace(cov_1) + np.trace(cov_2) - 2 * cross)


def compared(chemnet: ChemNet, samples: Activations, split: Split, count: int, seed: int) -> dict[str, float]:
    """The distance of samples from a part of MOSES, its error, and that of as many others of that part."""
    smiles = load_moses(split)
    order = np.random.default_rng(seed).permutation(len(smiles))[: count + len(samples)]
    known = chemnet([smiles[row] for row in order])
    part = np.arange(len(samples)) % PARTS
    without = [distance(samples[part != one], known[:count]) for one in range(PARTS)]
    return {
        "fcd": distance(samples, known[:count]),
        "fcd_se": jackknife(torch.tensor(without)).sqrt().item(),
        "floor": distance(known[count:], known[:count]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--model", type=Path, help="by default the one that ships with the package")
    parser.add_argument("--drawn", type=int, default=10_000)
    parser.add_argument("--references", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    busy, chemnet = time.process_time(), ChemNet()
    valid = [text for text in drawn(asked.model, asked.drawn, asked.seed) if read_or_none(text) is not None]
    samples = chemnet(valid)
    row: dict[str, Any] = {
        "model": asked.model.name if asked.model else "shipped", "drawn": asked.drawn, "seed": asked.seed,
        "molecules": len(valid), "references": asked.references,
    }  # fmt: skip
    for split in get_args(Split)[1:]:
        row[split] = compared(chemnet, samples, split, asked.references, asked.seed)
    row["cpu_seconds"] = time.process_time() - busy
    print(json.dumps(row, indent=1))
    versions = {"torch": torch.__version__, "fcd": version("fcd")}
    rows = json.loads(asked.out.read_text())["rows"] if asked.out.exists() else []
    rows = [other for other in rows if (other["model"], other["seed"]) != (row["model"], row["seed"])]
    write_json(asked.out, versions | {"rows": [*rows, row]})


if __name__ == "__main__":
    main()
