"""Learned soft values: their targets, the minima of their losses, and what they are worth as a `Value`."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from difftilt.conditions import unconditional
from difftilt.exact import grid as exact_grid
from difftilt.exact import tabular
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.samplers.value_guidance import ValueGuided
from difftilt.training.fit import fit
from difftilt.training.load import load_algorithm
from difftilt.training.settings import Training
from difftilt.training.train import train
from difftilt.transition import Categorical
from difftilt.values.network import ValueNetwork
from difftilt.values.regression import LARGEST, ValueRegression, exponential, linex

F64 = torch.float64
STATES, STEPS, ALPHA = 3, 3, 0.5


class EveryPath(tabular.TabularPolicy):
    """The uniform chain, which draws every path exactly once: batch means are expectations."""

    def __init__(self):
        uniform = torch.full((STEPS, STATES, STATES), 1 / STATES, dtype=F64)
        super().__init__(uniform[0, 0], uniform)
        self.paths = torch.cartesian_prod(*[torch.arange(STATES)] * (STEPS + 1))

    def initial(self, cond):
        return Scripted(super().initial(cond).probs, self.paths[:, 0, None])

    def forward(self, x, t, cond):
        return Scripted(super().forward(x, t, cond).probs, self.paths[:, self.steps + 1 - int(t[0]), None])


class Scripted(Categorical):
    def __init__(self, probs, script):
        super().__init__(probs)
        object.__setattr__(self, "script", script)

    def sample(self):
        return self.script  # type: ignore[attr-defined]


class Table(ValueNetwork):
    """One number per state and t, in place of a network."""

    def __init__(self, values):
        nn.Module.__init__(self)
        self.table = nn.Parameter(values.clone())

    def forward(self, x, t, cond):
        return self.table[t, x[:, 0]]

    def calibrate(self, values, least=1.0):
        pass


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    score, kernels = torch.randn(STATES, dtype=F64), 1.5 * torch.randn(STEPS, STATES, STATES, dtype=F64)
    reference = tabular.TabularPolicy(torch.full((STATES,), 1 / STATES, dtype=F64), kernels.softmax(-1))
    return Objective(lambda x, c: score[x[:, 0]], reference.requires_grad_(False), ALPHA)


def exact(objective):
    """v / alpha of every state at every t."""
    return tabular.solve(objective).values / objective.alpha


def expected_reward(objective, policy):
    """E_p[r | x_t] of every state at every t."""
    values = [objective.reward(torch.arange(STATES)[:, None], unconditional(STATES))]
    for kernel in policy.tables()[1].detach():
        values.append(kernel @ values[-1])
    return torch.stack(values)


def with_table(values, **settings):
    algorithm = ValueRegression(minibatches=1, **settings)
    algorithm.network = Table(values)
    return algorithm


def slope(algorithm, objective, policy):
    """The largest entry of the gradient of one round's loss."""
    loss = next(algorithm.losses(policy, objective, unconditional(STATES ** (STEPS + 1)))).value
    return torch.autograd.grad(loss, algorithm.network.table)[0].abs().max().item()


# targets


@pytest.mark.parametrize("target", ["monte_carlo", "bellman"])
def test_chains_of_the_optimum_teach_its_value_without_noise(problem, target):
    torch.manual_seed(0)
    values = exact(problem)
    algorithm = with_table(values, target=target)
    seen = problem.sample(tabular.solve(problem).policy, unconditional(50))
    y = algorithm._targets(seen, torch.arange(STEPS * 50)).view(STEPS, 50)
    for k, x in enumerate(seen.path.states[:-1, :, 0]):
        torch.testing.assert_close(y[k], values[STEPS - k, x])
    noisy = problem.sample(problem.reference, unconditional(50))
    off = algorithm._targets(noisy, torch.arange(50)) - values[STEPS, noisy.path.states[0, :, 0]]
    assert off.std() > 0.02


RIGHT = [(target, loss) for target in ("monte_carlo", "bellman") for loss in ("linex", "exponential")]


@pytest.mark.parametrize(("target", "loss"), RIGHT)
def test_the_exact_minimum_over_any_chain_is_the_soft_value(problem, target, loss):
    """Uniform chains are neither the reference's nor the optimum's; each loss is stationary only there."""
    values, settings = exact(problem), {"target": target, "loss": loss}
    assert slope(with_table(values, **settings), problem, EveryPath()) < 1e-12
    off = values.clone()
    off[2, 1] += 0.02
    assert slope(with_table(off, **settings), problem, EveryPath()) > 1e-4
    other = Objective(problem.reward, problem.reference, 1.02 * ALPHA)
    assert slope(with_table(values, **settings), other, EveryPath()) > 1e-4


@pytest.mark.parametrize("target", ["monte_carlo", "bellman"])
def test_squares_have_theirs_at_the_expected_reward_of_the_chains(problem, target):
    mean, settings = expected_reward(problem, EveryPath()) / ALPHA, {"target": target, "loss": "squared"}
    assert slope(with_table(mean, **settings), problem, EveryPath()) < 1e-12
    assert slope(with_table(exact(problem), **settings), problem, EveryPath()) > 1e-2


def test_the_moving_average_says_what_is_to_come(problem):
    algorithm = ValueRegression(target="bellman", target_decay=0.75, minibatches=1)
    algorithm.setup(problem.reference, unconditional(1))
    algorithm.network, algorithm.average = Table(exact(problem)), Table(exact(problem) + 1)
    rounds = algorithm.losses(EveryPath(), problem, unconditional(STATES ** (STEPS + 1)))
    slopes = torch.autograd.grad(next(rounds).value, algorithm.network.table)[0]
    assert slopes[1].abs().max() < 1e-12 < 1e-2 < slopes[2].abs().max()  # at t = 1 the reward is to come
    next(rounds, None)
    torch.testing.assert_close(algorithm.average.table, exact(problem) + 0.75)


# losses


@pytest.mark.parametrize("loss", [linex, exponential])
def test_the_minimum_is_the_log_mean_exp(loss):
    torch.manual_seed(0)
    y = 3 * torch.randn(1000, dtype=F64)
    y[:100] = -math.inf  # what the reference cannot draw
    best = y.logsumexp(0) - math.log(1000)
    slopes = []
    for shift in (-0.01, 0.0, 0.01):
        f = (best + shift).requires_grad_()
        cost = loss(y, f.expand(1000)).mean()
        assert cost.isfinite()
        slopes.append(torch.autograd.grad(cost, f)[0].item())
    assert slopes[0] < 0 < slopes[2]
    assert abs(slopes[1]) < 1e-12 * max(abs(slopes[0]), 1)


@pytest.mark.parametrize("loss", [linex, exponential])
@pytest.mark.parametrize("f", [-1e6, -300.0, 1e6])
def test_estimates_that_are_far_off_are_pulled_back_by_finite_slopes(loss, f):
    y = torch.tensor([0.0, 1.0], dtype=F64)
    f = torch.full_like(y, f).requires_grad_()
    pull = torch.autograd.grad(loss(y, f).mean(), f)[0]
    assert pull.isfinite().all()
    assert loss is exponential or (pull.sign() == f.sign()).all()


def test_the_straight_line_begins_where_no_share_of_targets_can_be():
    """Below it is the exponential; at the minimum Markov's inequality leaves exp(-30) above it."""
    y = torch.tensor([LARGEST - 1e-3, LARGEST, LARGEST + 2], dtype=F64)
    found = linex(y, torch.zeros(3, dtype=F64)) + y + 1
    wanted = torch.tensor([math.exp(LARGEST - 1e-3), math.exp(LARGEST), 3 * math.exp(LARGEST)], dtype=F64)
    torch.testing.assert_close(found, wanted)


def test_squared_errors_weigh_states_by_what_they_are_worth():
    """Near the minimum the exponential loss is exp(2 (f - m)) times LINEX, but for a factor of 2."""
    y = torch.tensor([0.0, 2.0], dtype=F64)
    f = (y + 1e-4).requires_grad_()
    flat, tilted = (torch.autograd.grad(loss(y, f).sum(), f)[0] for loss in (linex, exponential))
    ratio = tilted / flat
    assert (ratio[1] / ratio[0]).item() == pytest.approx(math.exp(4), rel=1e-3)


# training


def trained(objective, policy=None, rounds=30, size=256, rate=0.03, **settings):
    """An algorithm whose learning rate fell to 0, on chains of the policy, or of the reference."""
    torch.manual_seed(0)
    algorithm = ValueRegression(width=32, **{"minibatches": 16, **settings})
    algorithm.setup(objective.reference, unconditional(1))
    policy = objective.reference if policy is None else policy(algorithm.value(objective))
    optimizer = torch.optim.Adam(algorithm.parameters(), rate)
    conds, training = [unconditional(size)] * rounds, Training(max_norm=1.0)
    for row in fit(policy, objective, algorithm, conds, optimizer, training):
        optimizer.param_groups[0]["lr"] = rate * (1 - (row["round"] + 1) / rounds)
    return algorithm


def every_value(value):
    """v of every state at every t."""
    x, t = torch.arange(STATES).repeat(STEPS + 1)[:, None], torch.arange(STEPS + 1).repeat_interleave(STATES)
    return value(x, t, unconditional(len(x))).detach().double().view(STEPS + 1, STATES)


SETTINGS: list[dict[str, Any]] = [
    {"target": "monte_carlo", "loss": "linex"},
    {"target": "bellman", "loss": "linex"},
    {"target": "bellman", "loss": "linex", "target_decay": 0.5},
    {"target": "monte_carlo", "loss": "exponential"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_learns_the_soft_value_from_chains_of_the_reference(problem, settings):
    found = every_value(trained(problem, size=512, **settings).value(problem))
    wanted = tabular.solve(problem).values
    assert off(found, wanted, problem) < 0.12 * ALPHA
    assert torch.equal(found[0], wanted[0])
    assert off(expected_reward(problem, problem.reference), wanted, problem) > 0.3 * ALPHA


def off(found, wanted, problem):
    """The mean absolute error over the states that the reference visits, from x_T to x_1."""
    laws = tabular.evaluate(problem, problem.reference).laws.detach()
    return (laws * (found - wanted).abs())[1:].sum(1).mean().item()


def test_squares_learn_a_lower_bound(problem):
    found = every_value(trained(problem, size=512, loss="squared").value(problem))
    mean, wanted = expected_reward(problem, problem.reference), tabular.solve(problem).values
    assert off(found, mean, problem) < 0.12 * ALPHA
    assert (found < wanted)[1:].all()


def test_a_large_alpha_leaves_the_expected_reward(problem):
    """In units of alpha there is next to nothing to learn; the network's unit is that of the reward."""
    mild = Objective(problem.reward, problem.reference, 300.0)
    found = every_value(trained(mild, size=512).value(mild))
    mean = expected_reward(problem, problem.reference)
    assert off(found, mean, problem) < 0.12 * ALPHA
    assert off(mean.mean(1, keepdim=True).expand_as(mean), mean, problem) > 0.25 * ALPHA


def gaussian(alpha=0.5, reward=lambda x, c: torch.sin(3 * x[:, 0])):
    levels = gmm_schedule(10)
    chain = GaussianPolicy(gmm(levels), levels, (1,), prediction_type="sample", noise=FixedLarge())
    return Objective(reward, chain.double().requires_grad_(False), alpha)


@pytest.mark.parametrize("target", ["monte_carlo", "bellman"])
def test_targets_of_a_guided_chain_are_right_and_vary_less(target):
    """E exp(y - v / alpha) = 1 at every t, for chains of the reference as for those that the value guides."""
    torch.manual_seed(0)
    objective, axis = gaussian(reward=lambda x, c: x[:, 0]), exact_grid.Axis(-6, 6, 601)
    value = exact_grid.solve(objective, axis).value
    algorithm = ValueRegression(target=target)
    algorithm.network = Exact(value, objective.alpha)
    guided = ValueGuided(objective.reference, objective, value)
    spread = {}
    for name, policy in (("reference", objective.reference), ("guided", guided)):
        seen = objective.sample(policy, unconditional(2000))
        rows = seen.path.transitions(torch.arange(2000, 11 * 2000))
        off = algorithm._targets(seen, torch.arange(10 * 2000)) - algorithm.network(rows.x, rows.t, rows.cond)
        error = (off.view(10, -1).exp().mean(1) - 1) / (off.view(10, -1).exp().std(1) / 2000**0.5)
        assert error.abs().max() < 4
        spread[name] = off.std().item()
    assert spread["guided"] < 0.6 * spread["reference"]


class Exact(ValueNetwork):
    """The exact value in place of a network."""

    def __init__(self, value, alpha):
        nn.Module.__init__(self)
        self.value, self.alpha = value, alpha

    def forward(self, x, t, cond):
        return self.value(x, t, cond) / self.alpha


@pytest.mark.parametrize("target", ["monte_carlo", "bellman"])
@pytest.mark.parametrize("loss", ["linex", "exponential", "squared"])
def test_follows_the_origin_and_the_unit_of_the_reward(problem, target, loss):
    reward, reference = problem.reward.reward, problem.reference
    settings = {"rounds": 5, "size": 64, "minibatches": 4, "target": target, "loss": loss}

    def learned(scale, shift):
        changed = Objective(lambda x, c: scale * reward(x, c) + shift, reference, scale * ALPHA)
        return every_value(trained(changed, **settings).value(changed))

    before, moved, scaled = learned(1, 0), learned(1, 7.0), learned(40.0, 0)
    torch.testing.assert_close(moved - 7, before, rtol=0, atol=1e-3)
    torch.testing.assert_close(scaled / 40, before, rtol=0, atol=1e-3)
    assert (before[1:] - before[1:].mean()).abs().max() > 0.01


def test_huge_rewards_are_learned_without_overflow():
    """Rewards of a thousand nats: exp(r / alpha) is no number, log E exp(r / alpha) is."""
    objective = gaussian(alpha=1e-3, reward=lambda x, c: x[:, 0])
    algorithm = trained(objective, rounds=10, size=128)
    x, t = torch.linspace(-2, 2, 9, dtype=F64)[:, None], torch.ones(9, dtype=torch.long)
    assert algorithm.value(objective)(x, t, unconditional(9)).isfinite().all()


@pytest.mark.parametrize("loss", ["linex", "exponential", "squared"])
def test_dropped_samples_change_no_count_and_let_no_nan_through(problem, loss):
    reward = problem.reward.reward
    patchy = Guard(
        lambda x, c: torch.where(torch.arange(len(x)) % 3 == 0, torch.nan, reward(x, c)), on_error="drop"
    )
    objective = Objective(patchy, problem.reference, ALPHA)
    algorithm = ValueRegression(loss=loss, epochs=2, minibatches=3)
    algorithm.setup(problem.reference, unconditional(1))
    losses = list(algorithm.losses(problem.reference, objective, unconditional(30)))
    assert len(losses) == 6
    assert all(loss.value.isfinite() for loss in losses)


# as a value


def test_a_value_is_the_reward_at_the_end_and_has_a_gradient_before_it_was_trained():
    objective = gaussian()
    algorithm = ValueRegression()
    with pytest.raises(ValueError, match=r"call setup\(policy, cond\) before training"):
        algorithm.value(objective)
    algorithm.setup(objective.reference, unconditional(1))
    value, x = algorithm.value(objective), torch.linspace(-2, 2, 6, dtype=F64)[:, None].requires_grad_()
    t = torch.tensor([0, 5, 0, 10, 0, 1])
    v = value(x, t, unconditional(6))
    torch.testing.assert_close(v[t == 0], torch.sin(3 * x[t == 0, 0]))
    slope = torch.autograd.grad(v.sum(), x)[0][:, 0]
    torch.testing.assert_close(slope[t == 0], 3 * torch.cos(3 * x[t == 0, 0]))
    assert (slope[t > 0] == 0).all()


def test_a_value_follows_alpha_and_its_gradient_is_that_of_differences():
    objective = gaussian()
    value = trained(objective, rounds=3, size=64).value(objective)
    x, t = torch.linspace(-2, 2, 6, dtype=F64)[:, None].requires_grad_(), torch.full((6,), 4)
    slope = torch.autograd.grad(value(x, t, unconditional(6)).sum(), x)[0][:, 0]
    up, down = (value(x.detach() + h, t, unconditional(6)) for h in (0.01, -0.01))
    torch.testing.assert_close(slope.float(), (up - down) / 0.02, rtol=0.02, atol=1e-3)
    assert slope.abs().max() > 0.01


def test_what_a_run_learned_is_loaded_again(problem, tmp_path):
    def made():
        algorithm = ValueRegression(target="bellman", target_decay=0.5, width=16)
        algorithm.setup(problem.reference, unconditional(1))
        return algorithm

    algorithm, again = made(), made()
    optimizer = torch.optim.Adam(algorithm.parameters(), 0.02)
    conds = unconditional(32)
    training = Training(rounds=3)
    rounds = train(tmp_path, problem.reference, problem, algorithm, lambda k: conds, optimizer, training)
    assert len(list(rounds)) == 3
    assert load_algorithm(tmp_path, again) == 3
    assert torch.equal(every_value(again.value(problem)), every_value(algorithm.value(problem)))
    assert not torch.equal(every_value(made().value(problem)), every_value(algorithm.value(problem)))


def test_a_batch_that_is_too_small_is_refused(problem):
    algorithm = ValueRegression(minibatches=20)
    algorithm.setup(problem.reference, unconditional(1))
    with pytest.raises(ValueError, match="6 rows cannot be dealt into 20 minibatches"):
        next(algorithm.losses(problem.reference, problem, unconditional(2)))
