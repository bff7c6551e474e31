"""Graphs that are held from the draw on give the gradient of a second pass, where they may be held at all."""

import pytest
import torch
from problems import affine, finite, flat, reversal

from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import unconditional
from difftilt.guard import Guard
from difftilt.networks.sequence import MLP
from difftilt.objective import Objective
from difftilt.policy import Wrapped
from difftilt.processes.masked import MaskedPolicy

ONCE = {
    "trajectory-balance": lambda **settings: TrajectoryBalance(**{"minibatches": 1, **settings}),
    "detailed": lambda **settings: TrajectoryBalance(
        **{"minibatches": 1, "balance": "detailed", "log_z": "scalar", **settings}
    ),
    "path-consistency": lambda **settings: PathConsistency(**{"minibatches": 1, **settings}),
}


def masked():
    torch.manual_seed(0)
    reference, policy = (MaskedPolicy(MLP(3, 4, width=8), 3, 4) for _ in range(2))
    return Objective(lambda x, c: x.double().sum(1), reference.requires_grad_(False), 0.5), policy


def problem(name):
    if name == "masked":
        return masked()
    made = {"tabular": finite, "gaussian": affine, "reversal": reversal}[name]()
    return made.objective, made.elsewhere


class Counted(Wrapped):
    """A policy that says how often its steps were asked for."""

    passes = 0

    def forward(self, x, t, cond):
        self.passes += 1
        return self.base(x, t, cond)


def gradient(name, objective, policy, **settings):
    """Of the first loss of a round, and how often the policy was asked for that."""
    torch.manual_seed(1)
    algorithm, counted = ONCE[name](**settings), Counted(policy)
    algorithm.setup(policy, unconditional(24))
    before = counted.passes
    loss = next(iter(algorithm.losses(counted, objective, unconditional(24))))
    return flat(loss.value, policy), counted.passes - before


@pytest.mark.parametrize("chain", ["tabular", "gaussian", "reversal", "masked"])
@pytest.mark.parametrize("name", ONCE)
def test_held_graphs_give_the_gradient_of_a_second_pass(name, chain):
    objective, policy = problem(chain)
    held, passes = gradient(name, objective, policy, recompute=False)
    assert passes == policy.steps
    again, more = gradient(name, objective, policy, recompute=True)
    assert more > passes
    torch.testing.assert_close(held, again, rtol=1e-5 if chain == "masked" else 1e-12, atol=1e-7)
    assert held.norm() > 1e-3


@pytest.mark.parametrize("overlap", [1, 3])
@pytest.mark.parametrize("chain", ["tabular", "gaussian"])
def test_so_they_do_where_samples_have_no_reward_and_chains_come_in_parts(chain, overlap):
    found, (objective, policy) = [], problem(chain)
    for recompute in (False, True):

        def spotty(sample, cond):
            reward = objective.reward.reward(sample, cond).clone()
            reward[::5] = torch.nan
            return reward

        guard = Guard(spotty, on_error="drop", overlap=overlap)
        partly = Objective(guard, objective.reference, objective.alpha)
        found.append(gradient("trajectory-balance", partly, policy, recompute=recompute)[0])
        assert guard.dropped == 5
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("trajectory-balance", {"minibatches": 2}),
        ("trajectory-balance", {"epochs": 2}),
        ("trajectory-balance", {"explore": 0.5}),
        ("path-consistency", {"minibatches": 2}),
        ("path-consistency", {"replay": 10}),
        ("path-consistency", {"explore": 0.5}),
    ],
)
def test_no_graph_is_held_that_the_policy_will_have_left_behind(name, settings):
    objective, policy = problem("gaussian")
    drawn = policy.steps * (1 + ("explore" in settings))
    assert gradient(name, objective, policy, recompute=False, **settings)[1] == drawn + 1
