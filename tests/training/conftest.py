import multiprocessing
import os
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def ram(tmp_path):
    """A folder in memory, if there is one: what is tested does not depend on the disk."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def servant(monkeypatch):
    """Makes processes by forking one that has imported everything."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["toy_run", "faults", "torch.utils.tensorboard", "torch._dynamo"])
    return context
