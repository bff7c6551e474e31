"""Shapes and types of the package are checked while the tests run."""

import sys
from pathlib import Path

import jaxtyping

sys.path.insert(0, str(Path(__file__).parent))
jaxtyping.install_import_hook("difftilt", "typechecker.check")

import torch  # noqa: E402

torch.set_num_threads(1)
