"""A new condition: nothing changes at first, one training serves every y, and J of each is known exactly."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.conditions import unconditional
from difftilt.exact import grid
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.networks.conditional import Conditional
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.training.fit import fit

LEVELS = dataclasses.replace(gmm_schedule().respace(10), time=torch.arange(11))
AXIS = grid.Axis(-7, 7, 301)
MEANS = torch.tensor([-2.0, 1.0])


class Noise(nn.Module):
    """The perfect prediction of the noise in a mixture."""

    def __init__(self):
        super().__init__()
        self.denoiser = gmm(LEVELS)

    def forward(self, x, time, cond):
        a, s = LEVELS.alpha[time][:, None], LEVELS.sigma[time][:, None]
        return ((x - a * self.denoiser(x, time, cond)) / s).to(x.dtype)


def chain(network):
    settings: Any = {"prediction_type": "epsilon", "noise": FixedLarge()}
    return GaussianPolicy(network.requires_grad_(True), LEVELS, (1,), **settings)


def log_prob(x, cond):
    """log p(y | x), a soft choice of the nearer component."""
    logits = -((x - MEANS) ** 2) / (2 * 1.2**2)
    return logits.log_softmax(1).gather(1, cond["y"][:, None])[:, 0]


def test_one_training_serves_every_y():
    """Exact J of each y: -1.54 before, and -0.76 for the best chain with the reference's deviations."""
    torch.manual_seed(0)
    policy = chain(Conditional(Noise(), "y", 2, (1,), width=64))
    objective = Objective(log_prob, chain(Noise()).requires_grad_(False), 1.0)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, 25 * 8)
    both = {"y": torch.arange(512) % 2}
    for _ in fit(policy, objective, RewardWeighted(minibatches=8), [both] * 25, optimizer):
        schedule.step()
    for y in (0, 1):
        asked = {"y": torch.tensor([y])}
        best, _ = grid.solve_fixed_std(objective, AXIS, asked)
        with torch.no_grad():
            found = grid.evaluate(objective, policy, AXIS, asked)
            before = grid.evaluate(objective, objective.reference, AXIS, asked)
        assert best - before.objective > 0.7
        assert 0 < best - found.objective < 0.05
        other = (found.law * (AXIS.x.sign() != MEANS[y].sign())).sum()
        assert other < 0.5 * (before.law * (AXIS.x.sign() != MEANS[y].sign())).sum()


def test_tuning_starts_from_the_pretrained_law():
    torch.manual_seed(0)
    policy, reference = chain(Conditional(Noise(), "y", 3, (1,))), chain(Noise())
    seen = Objective(lambda x, c: x[:, 0], reference, 1.0).sample(policy, {"y": torch.arange(30) % 3})
    assert seen.kl.abs().max() == seen.log_ratio.abs().max() == 0
    nn.init.normal_(policy.network.branch[-1].weight)  # pyright: ignore
    x, t = torch.zeros(3, 1), torch.full((3,), 4)
    assert policy(x, t, {"y": torch.arange(3)}).mean.unique().numel() == 3


def test_networks_of_sequences_take_a_condition_too():
    class Logits(nn.Module):
        def forward(self, x, time, cond):
            return torch.zeros(len(x), 5, 4)

    policy = MaskedPolicy(Conditional(Logits(), "y", 2, (5, 5), (5, 4)), 4, 5)
    nn.init.normal_(policy.network.branch[-1].weight)  # pyright: ignore
    x, t = torch.full((2, 5), 4), torch.tensor([5, 5])
    clean = policy.clean(x, t, {"y": torch.tensor([0, 1])})
    assert clean.shape == (2, 5, 4)
    assert not torch.allclose(clean[0], clean[1])


@pytest.mark.parametrize("cond", [unconditional(2), {"y": torch.tensor([0, 3])}, {"y": ["a", "b"]}], ids=str)
def test_a_y_that_is_missing_or_unknown_is_refused(cond):
    network = Conditional(Noise(), "y", 3, (1,))
    with pytest.raises(ValueError, match=r"cond\['y'\] with numbers from 0 to 2"):
        network(torch.zeros(2, 1), torch.tensor([1, 1]), cond)
