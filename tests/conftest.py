"""Shapes and types of the package are checked while the tests run, unless DIFFTILT_UNTYPED is set."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

sys.path.insert(0, str(Path(__file__).parent))
if "DIFFTILT_UNTYPED" not in os.environ:
    jaxtyping.install_import_hook("difftilt", "typechecker.check")

os.environ["OMP_NUM_THREADS"] = "1"  # in commands that tests start, whose last digits are compared

import torch
from ray_nodes import two_workers

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """The cluster of Ray that all tests of a process share."""
    with two_workers() as found:
        yield found


@pytest.fixture
def double() -> Iterator[None]:
    """Draws and computes in float64, always the same numbers."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
