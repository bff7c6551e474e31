"""The published files, where the variable DIFFTILT_DATA names a folder that holds them."""

import hashlib
import os

import pytest
import torch

from difftilt.data.catalog import DATASETS, present
from difftilt.data.landscape import SIX6, TFBIND8, load_landscape, read_tfbind8
from difftilt.data.libraries import load_moses, load_utr
from difftilt.data.read import contents
from difftilt.data.store import locate

pytestmark = pytest.mark.data


def need(name: str) -> None:
    if "DIFFTILT_DATA" not in os.environ or len(present(name)) < len(DATASETS[name].files):
        pytest.skip(f"DIFFTILT_DATA names no folder with {name}")


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name in DATASETS for file in DATASETS[name].files]
)
def test_the_files_are_those_of_the_catalogue(name: str, file: str):
    need(name)
    assert hashlib.sha256(contents(locate(name, file))).hexdigest() == DATASETS[name].files[file].sha256


def test_the_table_in_the_package_is_the_published_one():
    need("tfbind8")
    source, shipped = read_tfbind8("six6", locate("tfbind8", TFBIND8["six6"])), load_landscape("six6")
    assert torch.equal(source.score, shipped.score) and source.note == shipped.note
    assert DATASETS["tfbind8"].files[TFBIND8["six6"]].sha256.encode() in SIX6.read_bytes()[:1000]


@pytest.mark.parametrize("name", ["pax6", "egr2"])
def test_tfbind8_is_complete(name: str):
    need("tfbind8")
    made = load_landscape(name)
    assert made.measured.all() and made.score.shape == (4**8,)
    assert (made.score.min(), made.score.max()) == (0, 1)


def test_gb1_has_what_was_measured():
    need("gb1")
    made = load_landscape("gb1")
    assert made.measured.sum() == 149_361 and made.score.shape == (20**4,)
    assert "6.777 nats from the lowest to the highest, 4.615 from the lowest to wild type" in made.note
    assert made.score[made.lower_half()].max() < 0.05  # the median variant is nearly dead


def test_utrs_are_those_of_the_paper():
    need("utr")
    x, y = load_utr()
    assert x.shape == (280_000, 50) and y.shape == (280_000,)
    assert 6 < y.mean() < 7 and 1.5 < y.std() < 1.7
    assert (torch.bincount(x.flatten()) > 0.2 * x.numel()).all()  # random letters


def test_moses_has_its_three_splits():
    need("moses")
    sizes = {split: len(load_moses(split)) for split in ("train", "test", "test_scaffolds")}
    assert sizes == {"train": 1_584_663, "test": 176_074, "test_scaffolds": 176_225}
