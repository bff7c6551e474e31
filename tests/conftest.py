"""Shapes and types of the package are checked while the tests run, unless DIFFTILT_UNTYPED is set."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest

sys.path.insert(0, str(Path(__file__).parent))
if "DIFFTILT_UNTYPED" not in os.environ:
    jaxtyping.install_import_hook("difftilt", "typechecker.check")

import torch

torch.set_num_threads(1)


@pytest.fixture
def double() -> Iterator[None]:
    """Draws and computes in float64, always the same numbers."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
