"""The benchmark of a GPU: where there is none it says so, and its code runs on tiny networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.slow


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_that_it_needs_one():
    done = run()
    assert done.returncode == 1 and "this benchmark needs a GPU" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_its_code_runs_on_tiny_networks(tmp_path):
    done = run("--tiny", "--out", str(tmp_path / "rows.json"))
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["unet", "transformer"]
    for row in rows:
        assert row["largest_log_ratio_nats"] < 1e-3 and min(row["seconds_per_round"]) > 0
        assert row["planned_bytes"] > 4 * row["weights"] and row["peak_bytes"] is None
