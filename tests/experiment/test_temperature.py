"""Samples at another temperature: what that costs is told, to the chain itself and to the pretrained one."""

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from difftilt import Categorical, Policy, sample, tune
from difftilt.cli.main import main
from difftilt.conditions import batch_size
from difftilt.shapes import Cond, State, Step


class Letters(Policy):
    """Two letters of three, drawn at once from shares that do not depend on the state."""

    def __init__(self, *logits: float):
        super().__init__()
        self.network, self.steps, self.symbols = nn.Module(), 1, 3
        self.network.logits = nn.Parameter(torch.tensor(logits).expand(2, 3).clone())

    def initial(self, cond: Cond) -> Categorical:
        return Categorical(torch.full((batch_size(cond), 2, 3), 1 / 3))

    def forward(self, x: State, t: Step, cond: Cond) -> Categorical:
        return Categorical(torch.as_tensor(self.network.logits).softmax(-1).expand(len(x), 2, 3))

    def decode(self, x: State, cond: Cond) -> State:
        return x


def first(samples: Tensor, cond: Cond) -> Tensor:
    return (samples == 0).float().mean(1)


def kl(a: Tensor, b: Tensor) -> float:
    return 2 * (a.softmax(0) * (a.log_softmax(0) - b.log_softmax(0))).sum().item()


def test_the_cost_is_the_kl_to_the_chain_as_it_is_at_one(tmp_path):
    tuned, before = torch.tensor([2.0, 1, 0]), torch.zeros(3)
    job = tune(Letters(*tuned.tolist()), first, reference=Letters(*before.tolist()).requires_grad_(False))
    row = sample(job, tmp_path / "cold", 8, temperature=0.5)
    assert row["tempering_kl_nats"] == pytest.approx(kl(2 * tuned, tuned), rel=1e-4)
    assert row["kl_nats"] == pytest.approx(kl(2 * tuned, before), rel=1e-4)
    assert row["reward_calls"] == 8
    plain = sample(job, tmp_path / "plain", 8)
    assert plain["kl_nats"] == pytest.approx(kl(tuned, before), rel=1e-4) and "temperature" not in plain
    job.policy.symbols = 0
    with pytest.raises(ValueError, match=r"chains of tokens, but got 0\.5 for real numbers"):
        sample(job, tmp_path / "real", 8, temperature=0.5)


def test_the_command_line_tells_it_and_names_its_files_alike(tmp_path, capsys):
    words = ["sample", "dna", "--count", "4", "--temperature", "0.5", "--out", str(tmp_path / "out")]
    main(words)
    assert "the temperature costs 0." in capsys.readouterr().out
    made = [path for path in (tmp_path / "out").iterdir() if path.name != "contents.json"]
    assert len(made) == 4 and {path.stem for path in made} == {"sample-seed1-temperature0_5"}
    with pytest.raises(SystemExit):
        main([*words, "sampler:smc"])
    assert "but got a sampler" in capsys.readouterr().err
