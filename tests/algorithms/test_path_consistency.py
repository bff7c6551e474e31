"""Path consistency: zero on any chain at the optimum, its sums, and what it learns from others' chains."""

import pytest
import torch
from problems import Problem, flat

from difftilt.algorithms import path_consistency, replay
from difftilt.algorithms.path_consistency import PathConsistency
from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.objective import Objective
from difftilt.policy import path_log_prob
from difftilt.training.fit import fit
from difftilt.values.network import ValueNetwork

F64 = torch.float64
SCHEMES = ["one_step", "fixed", "full", "all"]


def remembering():
    """A chain that stays where it is half of the time, so that values differ from state to state."""
    torch.manual_seed(0)
    score = torch.tensor([0.8, -0.3, 0.1], dtype=F64)
    _, kernels = tabular.random_chain(3, 3).tables()
    kernels = (0.5 * torch.eye(3, dtype=F64) + 0.5 * kernels).detach()
    initial = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    reference = tabular.TabularPolicy(initial, kernels).requires_grad_(False)
    objective = Objective(lambda x, c: score[x[:, 0]], reference, 0.5)
    best, start = tabular.solve(objective), tabular.TabularPolicy(initial, kernels)
    return Problem(objective, start, tabular.random_chain(3, 3), best.policy, best.optimum.item())


class Known(ValueNetwork):
    """Soft values v_t / alpha from a table, with log Z before x_T is drawn."""

    def __init__(self, table):
        torch.nn.Module.__init__(self)
        self.table = table

    def forward(self, x, t, cond):
        return self.table[t, x[:, 0]]

    def calibrate(self, values, least=1.0):
        """Known already."""


def values(problem):
    """v_t / alpha for t = 0, ..., T + 1."""
    alpha, solved = problem.objective.alpha, tabular.solve(problem.objective)
    return torch.cat([solved.values, solved.optimum.expand(1, 3)]) / alpha


def round_of(problem, policy, table, **settings):
    """The only loss of a round, with values that are known."""
    algorithm = PathConsistency(minibatches=1, recompute=False, **{"explore": 0.5, **settings})
    algorithm.value = Known(table)
    (loss,) = algorithm.losses(policy, problem.objective, unconditional(64))
    return loss.value.item()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pairs", SCHEMES)
def test_every_part_of_any_chain_is_consistent_at_the_optimum(pairs, frozen):
    problem = remembering()
    solved = tabular.solve(problem.objective)
    policy = solved.frozen_policy if frozen else solved.policy
    assert round_of(problem, policy, values(problem), pairs=pairs) < 1e-12
    algorithm = PathConsistency(pairs=pairs)
    algorithm.value = Known(values(problem))
    _, pool = replay.draw(problem.objective, problem.elsewhere, unconditional(64), 0.5, 3.0)
    start, end = algorithm._levels(policy, pool, problem.objective.alpha, not frozen)
    assert len(start) == 4 if frozen else 5
    assert (start[:, None] - end[None]).abs().max() < 1e-9


def late(table):
    return torch.cat([table[:1], table[:-1]])


BROKEN_VALUES = {
    "in units of the reward": lambda table: 0.5 * table,
    "of the step before": late,
    "of the other sign": lambda table: -table,
    "without log Z": lambda table: torch.cat([table[:-1], 0 * table[-1:]]),
}


@pytest.mark.parametrize("broken", BROKEN_VALUES.values(), ids=BROKEN_VALUES)
def test_consistency_notices_wrong_values(broken):
    problem = remembering()
    policy = tabular.solve(problem.objective).policy
    for pairs in SCHEMES:
        assert round_of(problem, policy, broken(values(problem)), pairs=pairs) > 1e-4


@pytest.mark.parametrize("pairs", SCHEMES)
def test_consistency_notices_another_policy_and_another_alpha(pairs):
    problem = remembering()
    assert round_of(problem, problem.elsewhere, values(problem), pairs=pairs) > 1e-2
    policy = tabular.solve(problem.objective).policy
    found = values(problem)
    problem.objective.alpha = 0.55
    assert round_of(problem, policy, found, pairs=pairs) > 1e-4


@pytest.mark.parametrize("factor", [-1, 0, 0.5])
def test_consistency_notices_wrong_log_ratios(monkeypatch, factor):
    problem = remembering()
    policy = tabular.solve(problem.objective).policy

    def broken(policy, path, recompute):
        base = path_log_prob(problem.objective.reference, path)
        return base + factor * (path_log_prob(policy, path) - base)

    monkeypatch.setattr(path_consistency, "path_log_prob", broken)
    for pairs in SCHEMES:
        assert round_of(problem, policy, values(problem), pairs=pairs) > 1e-3


@pytest.mark.parametrize("levels", [2, 5, 7])
@pytest.mark.parametrize("pairs", SCHEMES)
def test_weights_are_what_a_loop_says(pairs, levels):
    algorithm = PathConsistency(pairs=pairs, length=3, decay=0.7)
    expected = torch.zeros(levels, levels, dtype=F64)
    for i in range(levels):
        for j in range(i + 1, levels):
            apart = j - i
            expected[i, j] = {
                "one_step": apart == 1,
                "fixed": apart == min(3, levels - 1),
                "full": (i, j) == (0, levels - 1),
                "all": 0.7**apart,
            }[pairs]
    found = algorithm._weights(levels)
    torch.testing.assert_close(found, expected / expected.sum())
    assert found.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("pairs", SCHEMES)
def test_the_mean_square_is_the_sum_over_pairs(pairs):
    torch.manual_seed(0)
    start, end = torch.randn(2, 6, 9, dtype=F64)
    algorithm = PathConsistency(pairs=pairs)
    weight, expected = algorithm._weights(6), 0.0
    for i in range(6):
        for j in range(i + 1, 6):
            for chain in range(9):
                expected += weight[i, j].item() * (start[i, chain] - end[j, chain]).item() ** 2 / (2 * 9)
    assert algorithm._mean_square(start, end).item() == pytest.approx(expected, rel=1e-12)


def trained(problem, rounds, **settings):
    """An algorithm and a policy after some rounds on chains of 64."""
    torch.manual_seed(0)
    algorithm, cond = PathConsistency(recompute=False, **settings), unconditional(64)
    algorithm.setup(problem.start, cond)
    own = [p for p in algorithm.parameters() if p.requires_grad]
    groups = [{"params": [*problem.start.parameters()], "lr": 0.05}, {"params": own, "lr": 0.01}]
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, rounds * algorithm.minibatches)
    for _ in fit(problem.start, problem.objective, algorithm, [cond] * rounds, optimizer):
        schedule.step()
    return algorithm


def off(problem):
    """The largest total variation between the distributions of x_t and the optimum's."""
    evaluate = tabular.evaluate
    laws = [evaluate(problem.objective, policy).laws for policy in (problem.start, problem.best)]
    return (laws[0] - laws[1]).abs().sum(1).max().item() / 2


LEARNS = [(30, {}), (30, {"pairs": "one_step"}), (60, {"target_decay": 0.5})]


@pytest.mark.parametrize(("rounds", "settings"), LEARNS, ids=str)
def test_learns_the_optimum_from_chains_of_others(rounds, settings):
    problem = remembering()
    assert off(problem) > 0.2
    trained(problem, rounds, explore=0.5, temperature=2.0, replay=512, **settings)
    assert off(problem) < 0.02


def test_the_target_network_follows_and_passes_no_gradient():
    problem = remembering()
    algorithm = PathConsistency(target_decay=0.75, minibatches=1, recompute=False)
    algorithm.setup(problem.start, unconditional(16))
    assert algorithm.value and algorithm.target
    assert not any(p.requires_grad for p in algorithm.target.parameters())
    with torch.no_grad():
        for p in algorithm.value.parameters():
            p += 1
    before = [p.clone() for p in algorithm.target.parameters()]
    (loss,) = algorithm.losses(problem.start, problem.objective, unconditional(16))
    loss.value.backward()
    assert all(p.grad is None for p in algorithm.target.parameters())
    assert all(p.grad is not None for p in algorithm.value.parameters())
    pairs = zip(before, algorithm.target.parameters(), algorithm.value.parameters(), strict=True)
    for old, mean, now in pairs:
        torch.testing.assert_close(mean, 0.75 * old + 0.25 * now)


def test_recomputing_changes_no_gradient():
    found = []
    for recompute in (False, True):
        problem = remembering()
        torch.manual_seed(0)
        algorithm = PathConsistency(minibatches=1, recompute=recompute)
        algorithm.setup(problem.elsewhere, unconditional(32))
        (loss,) = algorithm.losses(problem.elsewhere, problem.objective, unconditional(32))
        found.append(flat(loss.value, problem.elsewhere))
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


def test_the_memory_holds_the_newest_chains_beside_those_of_the_round():
    problem = remembering()
    algorithm = PathConsistency(replay=100, minibatches=1, recompute=False)
    algorithm.setup(problem.start, unconditional(64))
    lengths = []
    for _ in range(4):
        list(algorithm.losses(problem.start, problem.objective, unconditional(64)))
        assert algorithm.memory
        lengths.append(len(algorithm.memory))
    assert lengths == [64, 128, 164, 164]


def test_a_saved_run_goes_on_with_the_same_loss():
    problem, settings = remembering(), {"replay": 256, "explore": 0.25, "target_decay": 0.9}
    first = trained(problem, 3, **settings)
    second = PathConsistency(recompute=False, **settings)
    second.setup(problem.start, unconditional(64))
    fresh = PathConsistency(recompute=False, **settings)
    fresh.setup(problem.start, unconditional(64))
    second.load_state_dict(first.state_dict())
    losses = []
    for algorithm in (first, second, fresh):
        torch.manual_seed(7)
        rounds = algorithm.losses(problem.start, problem.objective, unconditional(64))
        losses.append(next(rounds).value.item())
    assert losses[0] == losses[1] != losses[2]


def test_without_setup_it_says_so():
    problem = remembering()
    with pytest.raises(ValueError, match="call setup"):
        next(PathConsistency().losses(problem.start, problem.objective, unconditional(8)))
