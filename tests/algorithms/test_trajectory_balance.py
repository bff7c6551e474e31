"""Trajectory balance: balanced on any chain at the optimum, and on its own chains the gradient of a KL."""

import math

import pytest
import torch
from problems import EveryPath, finite, flat, reversal

from difftilt.algorithms import trajectory_balance
from difftilt.algorithms.graphs import Held
from difftilt.algorithms.trajectory_balance import TrajectoryBalance
from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.objective import Objective
from difftilt.policy import path_log_prob
from difftilt.values.network import ValueNetwork

F64 = torch.float64
FORMS = [
    {"log_z": "batch"},
    {"log_z": "scalar"},
    {"log_z": "conditional"},
    {"balance": "detailed", "log_z": "scalar"},
    {"balance": "detailed", "log_z": "conditional"},
]


class Known(ValueNetwork):
    """log F relative to the reference: v_t / alpha from a table; before x_T is drawn, log Z."""

    def __init__(self, table):
        torch.nn.Module.__init__(self)
        self.table = table

    def forward(self, x, t, cond):
        return self.table[t, x[:, 0]]

    def calibrate(self, values, least=1.0):
        """Known already."""


def remembering(stay=0.9):
    """The sticky chain, where what x_0 can be depends on x_T."""
    torch.manual_seed(0)
    score = torch.randn(6, dtype=F64)
    objective = Objective(lambda x, c: score[x[:, 0]], tabular.sticky(6, 5, stay).requires_grad_(False), 0.5)
    return objective, tabular.solve(objective)


def values(objective, solved):
    start = solved.optimum.expand(1, solved.values.shape[1])
    return torch.cat([solved.values, start]) / objective.alpha


def loss_of(objective, policy, table, size=64, **settings):
    """The only loss of a round whose chains were drawn by the tempered policy as well."""
    algorithm = TrajectoryBalance(minibatches=1, recompute=False, **{"explore": 0.5, **settings})
    algorithm.flow = Known(table)
    (loss,) = algorithm.losses(policy, objective, unconditional(size))
    return loss.value.item()


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_any_chain_is_balanced_at_the_optimum(settings):
    objective, solved = remembering()
    assert loss_of(objective, solved.policy, values(objective, solved), **settings) < 1e-18


@pytest.mark.parametrize("settings", FORMS, ids=str)
def test_balance_notices_another_policy_and_another_alpha(settings):
    objective, solved = remembering()
    table = values(objective, solved)
    assert loss_of(objective, objective.reference, table, **settings) > 0.05
    objective.alpha = 0.55
    assert loss_of(objective, solved.policy, table, **settings) > 1e-3


@pytest.mark.parametrize("settings", FORMS[1:], ids=str)
def test_balance_notices_wrong_flows(settings):
    objective, solved = remembering()
    table = values(objective, solved)
    for wrong in (-table, objective.alpha * table, 0 * table):
        assert loss_of(objective, solved.policy, wrong, **settings) > 1e-2


@pytest.mark.parametrize("balance", ["trajectory", "detailed"])
def test_a_frozen_start_that_is_remembered_needs_a_conditional_log_z(balance):
    objective, solved = remembering()
    table = values(objective, solved)
    conditional = loss_of(objective, solved.frozen_policy, table, balance=balance, log_z="conditional")
    assert conditional < 1e-18


def test_one_number_cannot_balance_a_frozen_start_that_is_remembered():
    """delta would have to vanish for each x_T, so log Z would have to be v_T / alpha of each."""
    for stay, balanced in ((0.9, False), (0.0, True)):
        objective, solved = remembering(stay)
        flows = values(objective, solved)[5]
        least = min(
            loss_of(objective, solved.frozen_policy, log_z.expand(7, 6), log_z="scalar", explore=0.0)
            for log_z in torch.linspace(flows.min().item(), flows.max().item(), 9, dtype=F64)
        )
        assert (least < 1e-12) == balanced
        assert balanced or least > 0.1 * flows.var().item() > 0.01


# on its own chains


def on_policy(**settings):
    """The gradient at the uniform chain, every path once, and that of KL(p || p*)."""
    torch.manual_seed(0)
    score, policy = torch.randn(3, dtype=F64), EveryPath(3, 3)
    objective = Objective(lambda x, c: score[x[:, 0]], tabular.random_chain(3, 3), 0.5)
    divergence = (tabular.solve(objective).optimum - tabular.evaluate(objective, policy).objective) / 0.5
    algorithm = TrajectoryBalance(minibatches=1, **{"recompute": False, **settings})
    cond = unconditional(len(policy.paths))
    algorithm.setup(policy, cond)
    (loss,) = algorithm.losses(policy, objective, cond)
    return flat(loss.value, policy), flat(divergence, policy)


@pytest.mark.parametrize("log_z", ["batch", "scalar", "conditional"])
def test_on_its_own_chains_the_gradient_is_that_of_the_divergence(log_z):
    torch.testing.assert_close(*on_policy(log_z=log_z), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("factor", [-1, 0.5, 2])
def test_the_gradient_test_notices_wrong_log_ratios(monkeypatch, factor):
    def broken(policy, path, recompute):
        return factor * path_log_prob(policy, path)

    monkeypatch.setattr(trajectory_balance, "path_log_prob", broken)
    found, expected = on_policy(recompute=True)
    assert (found - expected).norm() > 0.1 * expected.norm()
    right = Held.log_prob
    monkeypatch.setattr(Held, "log_prob", lambda held, seen: factor * right(held, seen))
    found, expected = on_policy()
    assert (found - expected).norm() > 0.1 * expected.norm()


def test_the_gradient_test_notices_a_forgotten_half(monkeypatch):
    monkeypatch.setattr(trajectory_balance, "Loss", lambda value, stats: Doubled(2 * value))
    found, expected = on_policy()
    assert (found - expected).norm() > 0.5 * expected.norm()


class Doubled:
    def __init__(self, value):
        self.value = value


def test_recomputing_changes_no_gradient():
    found = []
    for recompute in (False, True):
        problem = finite()
        torch.manual_seed(0)
        algorithm = TrajectoryBalance(minibatches=1, recompute=recompute)
        (loss,) = algorithm.losses(problem.elsewhere, problem.objective, unconditional(32))
        found.append(flat(loss.value, problem.elsewhere))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


# the noising process as a prior


def noised(density, size=64):
    """A round's loss on a chain that reverses the noising of N(0, 1) exactly, away from its optimum."""
    problem = reversal()
    prior = "reference" if density is None else "noising"
    torch.manual_seed(0)
    algorithm = TrajectoryBalance(minibatches=1, recompute=False, explore=0.5, prior=prior, density=density)
    (loss,) = algorithm.losses(problem.elsewhere, problem.objective, unconditional(size))
    return loss.value.item()


def test_the_noising_of_the_exact_density_is_the_pretrained_chain():
    relative = noised(None)
    assert relative > 0.1
    assert noised(lambda x, c: -(x[:, 0] ** 2) / 2 + 7) == pytest.approx(relative, rel=1e-5)
    assert noised(lambda x, c: -(x[:, 0] ** 2) / 2.2) != pytest.approx(relative, rel=1e-3)


def test_the_noising_prior_goes_with_a_density_and_a_chain_that_noises():
    with pytest.raises(ValueError, match="need each other; give both or neither"):
        TrajectoryBalance(prior="noising")
    with pytest.raises(ValueError, match="need each other; give both or neither"):
        TrajectoryBalance(density=lambda x, c: x[:, 0].double())
    problem = finite()
    algorithm = TrajectoryBalance(prior="noising", density=lambda x, c: x[:, 0].double())
    with pytest.raises(ValueError, match="a TabularPolicy is not; use 'reference'"):
        next(algorithm.losses(problem.start, problem.objective, unconditional(8)))


# contexts


def test_contexts_that_all_differ_are_refused():
    problem = finite()
    cond = {"label": torch.arange(32)}
    with pytest.raises(ValueError, match="all 8 of a minibatch differ; repeat the contexts"):
        list(TrajectoryBalance().losses(problem.start, problem.objective, cond))


def test_the_batch_form_has_a_log_z_for_each_context():
    """At the optimum of each context delta is a constant of its own, which one mean would leave."""
    problem = finite()
    reward = problem.objective.reward.reward
    objective = Objective(
        lambda x, c: reward(x, c) + 3.0 * torch.as_tensor(c["label"]), problem.objective.reference, 0.5
    )
    cond = {"label": torch.arange(64) % 2}
    (loss,) = TrajectoryBalance(minibatches=1).losses(problem.best, objective, cond)
    assert loss.value.item() < 1e-18
    generous = 3.0 * cond["label"]
    hidden = Objective(lambda x, c: reward(x, c) + generous, problem.objective.reference, 0.5)
    (loss,) = TrajectoryBalance(minibatches=1).losses(problem.best, hidden, unconditional(64))
    assert loss.value.item() == pytest.approx(math.pow(3.0 / 0.5 / 2, 2) / 2)


def test_without_setup_it_says_so():
    problem = finite()
    with pytest.raises(ValueError, match="call setup"):
        next(TrajectoryBalance(balance="detailed").losses(problem.start, problem.objective, unconditional(8)))
