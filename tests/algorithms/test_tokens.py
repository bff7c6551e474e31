"""The same algorithm files on chains of tokens, by the exact J of a masked chain."""

import copy

import pytest
import torch
from torch import nn

from difftilt.algorithms.adjoint_matching import AdjointMatching
from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.nft import NFT
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.ppo import PPO
from difftilt.algorithms.reward_weighted import RewardWeighted
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import unconditional
from difftilt.exact import landscape
from difftilt.objective import Objective
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.simplex import SimplexPolicy, schedule
from difftilt.processes.uniform import UniformPolicy
from difftilt.training.fit import fit

CATEGORIES, LENGTH, ALPHA = 3, 3, 0.3


class Network(nn.Module):
    def __init__(self, symbols=CATEGORIES + 1):
        super().__init__()
        sizes = (LENGTH * symbols, 32, LENGTH * CATEGORIES)
        self.mlp = nn.Sequential(nn.Linear(*sizes[:2]), nn.SiLU(), nn.Linear(*sizes[1:]))

    def forward(self, x, t, cond):
        return self.mlp(x.flatten(1)).view(len(x), LENGTH, CATEGORIES)


def problem(**settings) -> tuple[Objective, MaskedPolicy]:
    torch.manual_seed(0)
    reference = MaskedPolicy(Network(), CATEGORIES, LENGTH, **settings)
    table = torch.randn(LENGTH, CATEGORIES)

    def reward(x, cond):
        relaxed = x if x.is_floating_point() else nn.functional.one_hot(x, CATEGORIES).float()
        return (relaxed * table).sum((1, 2)).sin()

    policy = copy.deepcopy(reference)
    return Objective(reward, reference.requires_grad_(False), ALPHA), policy


def gap(objective, policy) -> float:
    found = landscape.evaluate(objective, policy).objective
    return (landscape.solve(objective).optimum - found).item() / ALPHA


def tuned(algorithm, objective, policy) -> MaskedPolicy:
    algorithm.setup(policy, unconditional(2))
    optimizer = torch.optim.Adam([*policy.parameters(), *algorithm.parameters()], 1e-2)
    list(fit(policy, objective, algorithm, [unconditional(256)] * 30, optimizer))
    return policy


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (PPO, 0.1),
        (RewardWeighted, 0.1),
        (lambda: TrajectoryBalance(recompute=False), 0.1),
        (lambda: PathConsistency(recompute=False), 0.1),
        (lambda: Backprop(minibatches=1, recompute=False), 0.5),  # straight-through draws are biased
    ],
    ids=["ppo", "reward-weighted", "trajectory-balance", "path-consistency", "backprop"],
)
def test_the_gap_to_the_optimum_closes(make, left):
    objective, policy = problem()
    before = gap(objective, policy)
    assert before > 0.5
    assert 0 <= gap(objective, tuned(make(), objective, policy)) < left * before


def test_the_gap_of_tokens_drawn_at_once_falls_with_more_steps():
    """What remains at 3 steps is the same for all algorithms: the best policy of that chain has it too."""
    left = {}
    for steps in (3, 12):
        objective, policy = problem(unmasking="bernoulli", steps=steps)
        left[steps] = gap(objective, tuned(RewardWeighted(), objective, policy))
    assert left[3] > 0.15
    assert 0 <= left[12] < 0.5 * left[3]


def masked():
    return MaskedPolicy(Network(), CATEGORIES, LENGTH)


def uniform():
    return UniformPolicy(Network(symbols=CATEGORIES), CATEGORIES, LENGTH, steps=4)


def simplex():
    return SimplexPolicy(Network(), CATEGORIES, LENGTH, time=schedule(4))


@pytest.mark.parametrize("make", [masked, uniform, simplex])
def test_values_are_rewards_of_whole_tokens_that_keep_what_is_unmasked(make):
    """A mixture of tokens would be scored as something that the reward has never seen."""
    torch.manual_seed(0)
    reference, scored = make().requires_grad_(False), []

    def reward(x, cond):
        scored.append(x if x.is_floating_point() else nn.functional.one_hot(x, CATEGORIES).float())
        return (scored[-1] * torch.tensor([0.3, -1.0, 2.0])).sum(-1) @ torch.tensor([9.0, 3.0, 1.0])

    objective = Objective(reward, reference, ALPHA)
    seen = objective.sample(reference, unconditional(50))
    scored.clear()
    values = RewardWeighted(form="value")._values(seen, objective)
    for k, (x, sample) in enumerate(zip(seen.path.states[:-1], scored, strict=True)):
        t = torch.full((50,), reference.steps - k)
        likeliest = reference.clean(x, t, seen.path.cond).argmax(-1)
        assert torch.equal(sample, nn.functional.one_hot(likeliest, CATEGORIES).float())
        if isinstance(reference, MaskedPolicy):
            assert torch.equal(likeliest.where(x < CATEGORIES, x), x)
        assert k == 0 or values[k].std() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [(NFT, "states of a MaskedPolicy are tokens; use"), (AdjointMatching, "has no gradient in states")],
)
def test_what_needs_real_numbers_says_so(make, message):
    objective, policy = problem()
    algorithm = make()
    with pytest.raises(ValueError, match=message):
        algorithm.setup(policy, unconditional(8))
        next(iter(algorithm.losses(policy, objective, unconditional(8))))
