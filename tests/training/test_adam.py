"""Our Adam is torch's, and a run that takes it never loads the compiler."""

import copy
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from difftilt.training.adam import Adam

RUN = """
import sys
from difftilt.cli.main import main
main(["finetune", "dna", "--rounds", "1", "--batch", "16", "--evaluate", "4", "--out", sys.argv[1]])
assert "torch._dynamo" not in sys.modules
"""


def steps(optimizer: torch.optim.Optimizer, weight: Tensor, count: int) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        (weight - torch.arange(3.0)).square().sum().backward()
        optimizer.step()


def test_it_is_torchs_own_bit_for_bit():
    ours, theirs = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    mine, torchs = Adam([ours], 0.1), torch.optim.Adam([theirs], 0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(mine, lambda _: 1.0)
    for _ in range(3):
        steps(mine, ours, 1)
        scheduler.step()
    steps(torchs, theirs, 3)
    assert torch.equal(ours, theirs)
    again = Adam([ours], 0.1)
    again.load_state_dict(copy.deepcopy(torchs.state_dict()))
    steps(again, ours, 2)
    steps(torchs, theirs, 2)
    assert torch.equal(ours, theirs)
    again.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5})
    assert [group["lr"] for group in again.param_groups] == [0.1, 0.5]


def test_a_run_does_not_load_the_compiler(tmp_path: Path):
    words = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    subprocess.run(words, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "run" / "summary.json").exists()
