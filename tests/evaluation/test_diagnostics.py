"""The cost of a frozen start, measured by sampling, against exact values."""

import math

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.evaluation import diagnostics
from difftilt.evaluation.diagnostics import FrozenStart, frozen_start, frozen_start_warning
from difftilt.evaluation.estimate import Estimate
from difftilt.exact import gaussian, tabular
from difftilt.exact.toy import GaussianDenoiser
from difftilt.guard import Guard, RewardError
from difftilt.guidance.start import TunedStart
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import DDIM
from difftilt.processes.schedule import NoiseSchedule, linear

F64 = torch.float64
SCORE = torch.tensor([0, 1, 1, 1, 1, 3], dtype=F64)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def sticky(stay, alpha=1.0):
    return Objective(lambda x, c: SCORE[x[:, 0]], tabular.sticky(6, 5, stay), alpha)


def exactly(objective):
    solved = tabular.solve(objective)
    return ((solved.optimum - solved.frozen) / objective.alpha).item()


def told_the_index(grid):
    return NoiseSchedule(torch.arange(len(grid.alpha)), grid.alpha, grid.sigma)


def assert_agrees(number, value, at_most):
    """Within four standard errors, which are small enough for that to mean something."""
    assert 0 < number.se < at_most
    assert abs(number.value - value) < 4 * number.se


@pytest.mark.parametrize("stay", [0.5, 0.9, 0.99])
def test_bias_and_memory_of_a_sticky_chain(stay):
    """x_0 is x_T with probability stay^5 and else any state: q^2 of the variance is explained."""
    objective = sticky(stay)
    seen = frozen_start(objective, unconditional(1), starts=1000, repeats=32)
    assert_agrees(seen.bias, exactly(objective), 0.02)
    assert_agrees(seen.memory, stay**10, 0.01)
    assert objective.reward.calls == 32_000


def test_bias_and_memory_of_a_gaussian_chain():
    grid = told_the_index(linear(8))
    network = GaussianDenoiser(grid, torch.ones(2), torch.tensor([[0.5, 0.2], [0.2, 0.4]]))
    chain = GaussianPolicy(network, grid, (2,), noise=DDIM(0.3), prediction_type="sample")
    reward = gaussian.bowl(torch.zeros(2, dtype=F64), 0.5 * torch.eye(2, dtype=F64))
    read = gaussian.affine(chain)
    solved = gaussian.solve(read, reward, 0.5)
    seen = frozen_start(Objective(reward, chain, 0.5), unconditional(1), starts=1000, repeats=16, chunk=300)
    assert_agrees(seen.bias, ((solved.optimum - solved.frozen) / 0.5).item(), 0.02)
    turn = torch.linalg.multi_dot([*read.weight])
    whole = gaussian.evaluate(read, read, reward, 0.5).cov.trace()
    assert_agrees(seen.memory, ((turn @ read.cov @ turn.T).trace() / whole).item(), 0.02)
    assert seen.memory.value > 0.3


def test_few_draws_would_look_like_a_bias_without_the_jackknife():
    """From a chain that remembers nothing: E[log Z - log of the mean of K] is about Var(w) / (2 K E(w)^2)."""
    weight = (SCORE / 2).exp()
    naive = (weight.var(correction=0) / weight.mean() ** 2 / (2 * 4)).item()
    seen = frozen_start(sticky(0.0, alpha=2.0), unconditional(1), starts=4000, repeats=4, chunk=4000)
    assert naive > 0.03
    assert abs(seen.bias.value) < naive / 5
    assert seen.bias.se < naive / 10
    assert abs(seen.memory.value) < 4 * seen.memory.se


def test_standard_errors_are_those_of_repeated_measurement():
    seen = [frozen_start(sticky(0.95), unconditional(1), starts=60, repeats=16) for _ in range(60)]
    for name in ("bias", "memory"):
        numbers = [getattr(one, name) for one in seen]
        spread = torch.tensor([n.value for n in numbers]).std().item()
        claimed = sum(n.se for n in numbers) / len(numbers)
        assert claimed == pytest.approx(spread, rel=0.35)


def test_conditions_are_averaged():
    def reward(x, c):
        return c["scale"] * SCORE[x[:, 0]]

    objective = Objective(reward, tabular.sticky(6, 5, 0.95), 1.0)
    cond = {"scale": torch.tensor([0.5, 1.5], dtype=F64)}
    seen = frozen_start(objective, cond, starts=800, repeats=32)
    each = [exactly(sticky(0.95, alpha=1 / scale)) for scale in (0.5, 1.5)]
    assert_agrees(seen.bias, sum(each) / 2, 0.02)
    assert abs(each[1] - each[0]) > 10 * seen.bias.se


def test_dropped_samples_are_left_out():
    """Where the reward is undefined in one state, x_0 is conditioned on the others."""
    undefined = SCORE.clone()
    undefined[0] = torch.nan
    chain = tabular.sticky(6, 5, 0.7)
    reward = Guard(lambda x, c: undefined[x[:, 0]], on_error="drop")
    seen = frozen_start(Objective(reward, chain, 1.0), unconditional(1), starts=1000, repeats=64)
    assert 10 < seen.repeats < 64
    remembered = 0.7**5
    law = remembered * torch.eye(6, dtype=F64) + (1 - remembered) / 6
    soft = (law[:, 1:] @ SCORE[1:].exp() / law[:, 1:].sum(1)).log()
    assert_agrees(seen.bias, (soft.logsumexp(0) - math.log(6) - soft.mean()).item(), 0.01)
    nothing = Guard(lambda x, c: torch.full((len(x),), torch.nan), "broken", on_error="drop")
    with pytest.raises(RewardError, match="reward 'broken' is valid for 0 of 8 samples from one x_T"):
        frozen_start(Objective(nothing, chain, 1.0), unconditional(1), starts=3, repeats=8)


def test_the_warning_names_the_size_and_both_remedies():
    text = frozen_start(sticky(0.99), unconditional(1), starts=200).warning
    for part in ("% of the variance of x_0", "nats below alpha log Z", "memoryless", "TunedStart"):
        assert part in text
    assert text.count(".\n") == 0 and text.endswith(".")
    assert frozen_start(sticky(0.0), unconditional(1), starts=200).warning == ""


def test_a_rough_figure_says_so():
    def measured(bias, draws):
        return FrozenStart(bias, memory=Estimate(0.5, 0.01), draws=draws, repeats=16).warning

    assert "only 1.5 of 16 draws from one x_T carry weight" in measured(Estimate(0.5, 0.1), 1.5)
    assert "only 1.5 of 16" in measured(Estimate(0.0, 0.1), 1.5)
    assert "rough" not in measured(Estimate(0.5, 0.1), 10.0)
    assert measured(Estimate(0.5, 0.4), 10.0) == measured(Estimate(0.005, 0.0001), 10.0) == ""


def test_no_warning_where_the_start_is_tuned():
    grid = told_the_index(linear(4))
    network = GaussianDenoiser(grid, torch.zeros(1), torch.eye(1))
    reference = GaussianPolicy(network, grid, (1,), noise=DDIM(0.1), prediction_type="sample")
    objective = Objective(lambda x, c: 2 * x[:, 0], reference, 1.0)
    assert "nats below" in frozen_start_warning(reference, objective, unconditional(1))
    calls = objective.reward.calls
    assert frozen_start_warning(TunedStart(reference), objective, unconditional(1)) == ""
    assert objective.reward.calls == calls


@pytest.mark.parametrize(("starts", "repeats"), [(2, 16), (64, 1)])
def test_too_few_samples_are_refused(starts, repeats):
    with pytest.raises(ValueError, match="starts >= 3 and repeats >= 2, but"):
        frozen_start(sticky(0.5), unconditional(1), starts, repeats)


def test_a_constant_reward_costs_nothing_and_every_draw_counts():
    objective = Objective(lambda x, c: torch.full((len(x),), 7.0, dtype=F64), tabular.sticky(6, 5, 0.9), 0.1)
    seen = frozen_start(objective, unconditional(1), starts=5, repeats=8)
    assert seen.bias.value == pytest.approx(0, abs=1e-12) and seen.draws == pytest.approx(8)


def test_the_jackknife_of_the_memory_leaves_out_one_start_at_a_time():
    def share(x):
        within = x.var(1).sum(1).mean()
        signal = x.mean(1).var(0).sum() - within / x.shape[1]
        return signal / (signal + within)

    x = torch.randn(4, 1, 2, dtype=F64) + torch.randn(4, 3, 2, dtype=F64)
    pseudo = torch.stack([4 * share(x) - 3 * share(x[torch.arange(4) != i]) for i in range(4)])
    found = diagnostics._memory(x)
    assert found.value == pytest.approx(pseudo.mean().item())
    assert found.se == pytest.approx(pseudo.std().item() / 2)
