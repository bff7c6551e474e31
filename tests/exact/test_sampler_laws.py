"""Exact distributions of samplers on short sequences: against samples, enumeration, and in their limits."""

import pytest
import torch
from enumeration import masked_table

from difftilt.conditions import unconditional
from difftilt.data.vocabulary import place_values
from difftilt.exact import landscape, sampler_laws
from difftilt.objective import Objective
from difftilt.policy import level
from difftilt.samplers.svdd import SVDD

CATEGORIES, LENGTH, ALPHA = 2, 3, 0.4


def reward(x, cond):
    return (x.double() @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)).sin()


def wrong_value(x, t, c):
    digits = place_values(CATEGORIES + 1, x.shape[1])
    return torch.sin((x * digits).sum(1) + 2.0 * t).double() * 0.5


def problem(**settings):
    torch.manual_seed(0)
    return Objective(reward, masked_table(CATEGORIES, LENGTH, **settings), ALPHA)


def random_rows():
    torch.manual_seed(0)
    probs = torch.rand(4, 5, dtype=torch.float64)
    probs[0, 2] = 0
    return probs / probs.sum(1, keepdim=True), 3 * torch.randn(4, 5, dtype=torch.float64)


@pytest.mark.parametrize("candidates", [1, 2, 3, 64, 10**5])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_quadrature_gives_a_law(candidates, scale):
    probs, log_w = random_rows()
    law = sampler_laws.one_of(probs, scale * log_w + 700, candidates)
    torch.testing.assert_close(law.sum(1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-8)
    assert law[0, 2] == 0


def test_one_of_two_draws_is_that_of_all_pairs():
    probs, log_w = random_rows()
    w, expected = log_w.exp(), torch.zeros_like(probs)
    for a in range(5):
        for b in range(5):
            pair = probs[:, a] * probs[:, b] / (w[:, a] + w[:, b])
            expected[:, a] += pair * w[:, a]
            expected[:, b] += pair * w[:, b]
    torch.testing.assert_close(sampler_laws.one_of(probs, log_w, 2), expected, rtol=1e-9, atol=1e-10)


def test_one_of_many_draws_tends_to_the_tilted_law():
    probs, log_w = random_rows()
    tilted = (probs.log() + log_w).softmax(1)
    away = [(sampler_laws.one_of(probs, log_w, m) - tilted).abs().max().item() for m in (1000, 4000)]
    assert away[0] < 2e-3 and away[1] == pytest.approx(away[0] / 4, rel=0.1)
    torch.testing.assert_close(sampler_laws.one_of(probs, log_w, 1), probs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("start", [None, torch.tensor([2, 1, 2])], ids=["masks", "frozen"])
def test_svdd_draws_its_law(start):
    objective = problem(start=start)
    exact = sampler_laws.evaluate_svdd(objective, wrong_value, 3)
    torch.manual_seed(0)
    drawn = SVDD(candidates=3).draw(objective, wrong_value, unconditional(20_000))
    index = (drawn.x_0 * place_values(CATEGORIES, LENGTH)).sum(1)
    law = torch.bincount(index, minlength=CATEGORIES**LENGTH) / len(index)
    assert (law - exact.law).abs().sum().item() / 2 < 0.01
    assert exact.law.sum().item() == pytest.approx(1, abs=1e-8)
    assert abs(drawn.reward.mean() - exact.reward).item() < 4 * drawn.reward.std().item() / 20_000**0.5
    assert drawn.kl.mean() > exact.kl  # which is a bound


def test_one_candidate_is_the_reference_and_many_are_the_optimum():
    objective = problem()
    solved = landscape.solve(objective)
    base = landscape.evaluate(objective, objective.reference)
    one, some, many = (sampler_laws.evaluate_svdd(objective, solved.value, m) for m in (1, 8, 10_000))
    torch.testing.assert_close(one.law, base.law, rtol=0, atol=1e-8)
    assert one.kl.item() == pytest.approx(0, abs=1e-8)
    torch.testing.assert_close(many.law, solved.law, rtol=0, atol=1e-4)
    assert one.objective < some.objective < many.objective < solved.optimum
    assert solved.optimum - many.objective < 1e-6 * 10


def test_flips_of_the_reference_cost_nothing():
    objective = problem()
    found = sampler_laws.evaluate_flips(objective, objective.reference)
    base = landscape.evaluate(objective, objective.reference)
    torch.testing.assert_close(found.law, base.law, rtol=0, atol=1e-12)
    assert found.kl.item() == 0


def test_a_value_is_tabulated_at_every_state_that_the_chain_can_be_in():
    objective = problem(start=torch.tensor([2, 1, 2]))
    table = sampler_laws.tabulate(objective, wrong_value)
    solved = landscape.solve(objective)
    x = torch.tensor([[2, 1, 2], [0, 1, 2], [0, 1, 1], [0, 0, 2]])
    index = (x * place_values(CATEGORIES + 1, LENGTH)).sum(1)
    expected = wrong_value(x, torch.tensor([2, 1, 0, 1]), {})
    assert table[index][:2].equal(expected[:2])
    assert table[index][2] == reward(x, {})[2] and table[index][3] == -torch.inf
    again = sampler_laws.tabulate(objective, solved.value)
    torch.testing.assert_close(again[index[:2]], solved.value(x[:2], torch.tensor([2, 1]), {}))


@pytest.mark.parametrize("settings", [{"steps": 2}, {"unmasking": "bernoulli"}], ids=["two", "bernoulli"])
def test_only_one_position_per_step_is_claimed(settings):
    with pytest.raises(ValueError, match=r"exact\.sampler_laws needs .*one position per step"):
        sampler_laws.evaluate_svdd(problem(**settings), wrong_value, 2)


def test_levels_are_numbers_of_masks():
    """The number of masks tells t, so that a table of values needs no t."""
    objective = problem()
    solved = landscape.solve(objective)
    table = sampler_laws.tabulate(objective, solved.value)
    x = torch.tensor([[2, 2, 0]])
    index = (x * place_values(CATEGORIES + 1, LENGTH)).sum(1)
    assert table[index].item() == solved.value(x, level(x, 2), {}).item()
    assert solved.value(x, level(x, 1), {}).item() == -torch.inf
