"""What doctor finds: each fault that is put in by its own words, and nothing where there is none."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from difftilt import DDIM, Euler, FlowSDE, GaussianPolicy
from difftilt.cli.doctor import show
from difftilt.cli.main import main
from difftilt.experiment.doctor import examine
from difftilt.experiment.job import Finding, Job, tune
from difftilt.processes.schedule import cosine, linear, shifted_flow
from difftilt.shapes import Cond
from difftilt.training.settings import Training


class Net(nn.Module):
    """A small network, and what a fault makes of its answers."""

    def __init__(self, fault: str = ""):
        super().__init__()
        torch.manual_seed(0)
        self.mlp = nn.Sequential(nn.Linear(9, 16), nn.SiLU(), nn.Linear(16, 8))
        self.drop, self.fault, self.asked = nn.Dropout(0.1 if fault == "dropout" else 0.0), fault, 0

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.asked += 1
        told = torch.cat([x.float(), time[:, None].float() / 1000], 1)
        answer = self.mlp(self.drop(told)).to(x.dtype)
        if self.fault == "guidance" and not torch.is_grad_enabled():
            return 3 * answer
        if self.fault == "precision" and torch.is_grad_enabled():
            return answer.bfloat16().to(x.dtype)
        if self.fault == "noise":
            return answer + 0.1 * torch.randn_like(answer)
        if self.fault == "memory":
            return answer + 0.01 * self.asked
        if self.fault == "neighbours":
            return answer + x.mean(0)
        return answer


def job(
    fault: str = "", schedule=None, noise=None, prediction: Any = "epsilon", reward=None, alpha=0.1
) -> Job:
    net = Net(fault)
    policy = GaussianPolicy(
        net, schedule or linear(4), (8,), noise=noise or DDIM(1.0), prediction_type=prediction
    )
    if fault == "states":
        policy.to(torch.bfloat16)
    if fault == "infinite":
        torch.nn.init.constant_(net.get_parameter("mlp.2.bias"), torch.inf)
    if fault == "frozen":
        policy.requires_grad_(False)
    if fault == "idle":
        net.mlp.requires_grad_(False)
        net.spare = nn.Linear(2, 2)
    return tune(
        policy, reward or (lambda x, cond: x.sin().mean(1)), alpha=alpha, training=Training(), name="r"
    )


def wrong(found: Job) -> str:
    return "\n".join(finding.text for finding in examine(found) if finding.wrong)


@pytest.mark.parametrize(
    "fault, said",
    [
        ("dropout", "1 layers of dropout are active; call eval"),
        ("guidance", "in training the network is another one than in sampling; use guidance in both"),
        ("precision", "another precision in training than in sampling"),
        ("noise", "draws random numbers of its own"),
        ("memory", "draws random numbers of its own|remembers what it was asked before"),
        ("neighbours", "rows of a batch see each other"),
        ("states", "No chain can be sampled: .* need float32 or better, but got torch.bfloat16"),
        ("infinite", "density of decision 1 of a chain is not finite"),
        ("frozen", "Nothing of the policy trains"),
        ("idle", "does not depend on what is to be trained"),
    ],
)
def test_a_fault_of_a_chain_is_named(fault, said):
    assert re.search(said, wrong(job(fault))), wrong(job(fault))


@pytest.mark.parametrize(
    "reward, said",
    [
        (lambda x, cond: 1e6 * x.mean(1), "does not fit alpha 0.1"),
        (lambda x, cond: 1e-9 * x.mean(1), "does not fit alpha 0.1"),
        (lambda x, cond: torch.ones(len(x)), "nothing to learn"),
        (lambda x, cond: torch.full((len(x),), torch.nan), "The reward fails: .* returned nan"),
        (lambda x, cond: x[:, :2], "The reward fails: .* returned shape"),
    ],
)
def test_a_fault_of_a_reward_is_named(reward, said):
    assert re.search(said, wrong(job(reward=reward)))


def test_conditions_that_a_reward_does_not_read_are_told():
    def told(reward) -> str:
        asked = replace(job(reward=reward), cond=lambda count: {"label": torch.arange(count) % 2})
        return "\n".join(finding.text for finding in examine(asked))

    assert "does not read the conditions" in told(lambda x, cond: x.mean(1))
    reads = told(lambda x, cond: x.mean(1) + cond["label"])
    assert "does not read" not in reads and "With exchanged conditions the reward is" in reads


@pytest.mark.parametrize("schedule", [linear(3), cosine(50).respace(5), linear(10)])
@pytest.mark.parametrize("noise", [DDIM(1.0), DDIM(0.3), FlowSDE(0.7), FlowSDE()])
def test_a_sound_job_gives_no_alarm(schedule, noise):
    schedule = schedule.take(torch.arange(1, schedule.steps + 1))
    found = job(schedule=schedule, noise=noise)
    before = [p.clone() for p in found.policy.parameters()]
    assert wrong(found) == ""
    assert all(p.equal(q) and p.grad is None for p, q in zip(found.policy.parameters(), before, strict=True))


@pytest.mark.parametrize("noise", [FlowSDE(0.7), Euler(0.7)])
@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_a_sound_flow_gives_no_alarm(noise, shift):
    assert wrong(job(schedule=shifted_flow(4, shift, 0.05), noise=noise, prediction="flow_prediction")) == ""


def test_what_the_model_checks_of_itself_comes_first():
    own = replace(job(), checks=lambda: [Finding("my own", wrong=True)])
    assert next(iter(examine(own))).text == "my own"


def test_the_command_says_all_of_it_and_fails_where_something_would_go_wrong(capsys):
    recipe = f"{Path(__file__).parents[1] / 'cli' / 'own_recipe.py'}:walk"
    with pytest.raises(SystemExit) as failed:
        main(["doctor", recipe, "--alpha", "1e-9"])
    told = capsys.readouterr()
    assert failed.value.code == 1 and "WRONG The reward is" in told.out and "a gradient reaches" in told.out
    assert told.err.startswith("difftilt: 1 of these would make the run go wrong")
    show([Finding("sound")])
    assert "nothing was found that would go wrong" in capsys.readouterr().out
