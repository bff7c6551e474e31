"""The theorems that the objective rests on, to the last digits of float64."""

import pytest
import torch

from difftilt.exact import tabular as exact
from difftilt.exact.gaussian import AffineChain, AffinePolicy
from difftilt.objective import Objective

ALPHA = 0.5
TINY = 1e-12


@pytest.fixture
def problem():
    torch.manual_seed(0)
    score = torch.randn(6, dtype=torch.float64)
    return Objective(lambda x, c: score[x[:, 0]], exact.random_chain(6, 5), ALPHA), score


def close(a, b):
    torch.testing.assert_close(a, b, atol=TINY, rtol=0)


def posteriors(policy, laws):
    """p(x_t | x_{t-1}) for t = 1, ..., T."""
    _, kernels = policy.tables()
    joint = laws[1:, :, None] * kernels
    return joint / joint.sum(1, keepdim=True)


def test_theorem_1_the_optimal_policy_samples_the_tilted_law(problem):
    objective, score = problem
    solved = exact.solve(objective)
    pretrained = exact.evaluate(objective, objective.reference).laws[0]
    tilted = pretrained * (score / ALPHA).exp()
    close(exact.evaluate(objective, solved.policy).laws[0], tilted / tilted.sum())
    close(solved.optimum, ALPHA * tilted.sum().log())


def test_theorem_2_every_marginal_is_tilted_by_its_value(problem):
    objective, _ = problem
    solved = exact.solve(objective)
    before = exact.evaluate(objective, objective.reference).laws
    after = exact.evaluate(objective, solved.policy).laws
    close(after, before * ((solved.values - solved.optimum) / ALPHA).exp())


def test_theorem_3_posteriors_stay(problem):
    objective, _ = problem
    policies = [objective.reference, exact.solve(objective).policy]
    before, after = (posteriors(p, exact.evaluate(objective, p).laws) for p in policies)
    close(after, before)


def test_the_optimum_is_alpha_log_z_and_the_gap_is_a_kl(problem):
    objective, score = problem
    solved = exact.solve(objective)
    close(exact.evaluate(objective, solved.policy).objective, solved.optimum)
    close(exact.evaluate(objective, solved.frozen_policy).objective, solved.frozen)
    other = exact.random_chain(6, 5)
    kl = exact.evaluate(Objective(lambda x, c: score[x[:, 0]], solved.policy, ALPHA), other).kl
    close(solved.optimum - exact.evaluate(objective, other).objective, ALPHA * kl)


def test_path_kl_bounds_the_terminal_kl_and_equals_it_at_the_optimum(problem):
    objective, _ = problem
    pretrained = exact.evaluate(objective, objective.reference).laws[0]
    gaps = []
    for policy in (exact.random_chain(6, 5), exact.solve(objective).policy):
        seen = exact.evaluate(objective, policy)
        gaps.append(seen.kl - (seen.laws[0] * (seen.laws[0] / pretrained).log()).sum())
    assert gaps[0] > 0.1
    close(gaps[1], torch.zeros((), dtype=torch.float64))


def test_reward_rises_with_one_over_alpha_by_its_variance(problem):
    """d E_{p_r} r / d(1 / alpha) = Var r."""
    objective, score = problem
    rewards = []
    for beta in (1 / ALPHA - 1e-5, 1 / ALPHA + 1e-5):
        tempered = Objective(objective.reward, objective.reference, 1 / beta)
        rewards.append(exact.evaluate(tempered, exact.solve(tempered).policy).reward)
    law = exact.evaluate(objective, exact.solve(objective).policy).laws[0]
    variance = law @ score**2 - (law @ score) ** 2
    assert ((rewards[1] - rewards[0]) / 2e-5).item() == pytest.approx(variance.item(), abs=1e-8)


@pytest.mark.parametrize("shift", [-3.0, 100.0])
def test_a_shift_of_the_reward_changes_nothing_but_the_optimum(problem, shift):
    objective, score = problem
    shifted = Objective(lambda x, c: score[x[:, 0]] + shift, objective.reference, ALPHA)
    a, b = exact.solve(objective), exact.solve(shifted)
    torch.testing.assert_close(a.policy.tables(), b.policy.tables())
    torch.testing.assert_close(a.optimum + shift, b.optimum)


FROZEN = [(0.0, 0.000), (0.5, 0.000), (0.9, 0.072), (0.99, 0.433), (1.0, 0.763)]


@pytest.mark.parametrize(("stay", "distance"), FROZEN)
def test_a_frozen_start_misses_the_tilted_law_by_as_much_as_the_chain_remembers(stay, distance):
    score = torch.tensor([0, 1, 1, 1, 1, 3], dtype=torch.float64)
    objective = Objective(lambda x, c: score[x[:, 0]], exact.sticky(6, 5, stay), ALPHA)
    solved = exact.solve(objective)
    frozen, tuned = (exact.evaluate(objective, p).laws[0] for p in (solved.frozen_policy, solved.policy))
    close(tuned, (score / ALPHA).softmax(0))
    assert (frozen - tuned).abs().sum().item() / 2 == pytest.approx(distance, abs=6e-4)


def test_needs_a_finite_reference():
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    chain = AffineChain(one[0, 0], one[0], one, one[0], one)
    with pytest.raises(ValueError, match="a reference that is a TabularPolicy, but got AffinePolicy"):
        exact.solve(Objective(lambda x, c: x[:, 0], AffinePolicy(chain), 1.0))
