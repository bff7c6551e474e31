"""Shapes and types of the package are checked while the tests run."""

import jaxtyping

jaxtyping.install_import_hook("difftilt", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
