"""One of M candidates: Z is unbiased for every M and value, and x_0 tends to the tilted steps."""

import math

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.exact import grid, tabular
from difftilt.exact.sampler_laws import one_of
from difftilt.exact.toy import gmm, gmm_schedule
from difftilt.guard import Guard
from difftilt.guidance.tempered import Tempered
from difftilt.objective import Objective
from difftilt.policy import decide
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.samplers.svdd import SVDD
from difftilt.values.tweedie import PosteriorMean

ALPHA, STATES, STEPS = 0.5, 6, 4
SCORE = torch.tensor([1.2, -0.3, 0.4, -1.1, 0.1, 0.6], dtype=torch.float64)


def objective_of(reward=None):
    torch.manual_seed(3)
    return Objective(reward or (lambda x, c: SCORE[x[:, 0]]), tabular.random_chain(STATES, STEPS), ALPHA)


@pytest.fixture(scope="module")
def problem():
    objective = objective_of()
    return objective, tabular.solve(objective)


def exact_value(solved):
    return lambda x, t, c: solved.values[t, x[:, 0]]


def wrong_value(x, t, c):
    return torch.sin(x[:, 0] + 2.0 * t).double() * 0.6


def relative_z(log_z, solved):
    """The mean of the estimates of Z over Z, and its standard error."""
    ratio = (log_z - solved.optimum / ALPHA).exp()
    return ratio.mean().item(), (ratio.std() / len(ratio) ** 0.5).item()


def law_of(drawn):
    return torch.bincount(drawn.x_0[:, 0], minlength=STATES) / len(drawn.x_0)


def exact_law(objective, value, candidates):
    """The distribution of x_0 if each step keeps one of M candidates, by quadrature, and its path KL."""
    initial, kernels = objective.reference.tables()
    law, kl = torch.ones(1, dtype=torch.float64), 0.0
    x = torch.arange(STATES)[:, None]
    for t in range(STEPS, -1, -1):
        base = initial[None] if t == STEPS else kernels[t]
        v = value(x, torch.full((STATES,), t), {}) if t else SCORE
        chosen = one_of(base.detach(), (v / ALPHA).expand_as(base), candidates)
        kl += (law @ (chosen * (chosen / base).log()).sum(1)).item()
        law = law @ chosen
    return law, kl


@pytest.mark.parametrize("settings", [
    {"candidates": 1},
    {"candidates": 3},
    {"candidates": 3, "particles": 4},
    {"candidates": 2, "particles": 4, "threshold": 1.0},
], ids=["importance", "svdd", "svdd-r", "always"])  # fmt: skip
def test_z_is_unbiased_whatever_the_value(problem, settings):
    objective, solved = problem
    torch.manual_seed(0)
    drawn = SVDD(**settings).draw(objective, wrong_value, unconditional(20_000))
    mean, error = relative_z(drawn.log_z, solved)
    assert abs(mean - 1) < 3 * error < 0.07


@pytest.mark.parametrize("candidates", [1, 2, 8])
def test_the_law_is_that_of_one_of_m_draws(problem, candidates):
    """By quadrature at every step: with one candidate it is the reference's, whatever the value."""
    objective, _ = problem
    torch.manual_seed(0)
    drawn = SVDD(candidates=candidates).draw(objective, wrong_value, unconditional(40_000))
    law, kl = exact_law(objective, wrong_value, candidates)
    assert law.sum().item() == pytest.approx(1, abs=1e-8)
    assert (law_of(drawn) - law).abs().sum().item() / 2 < 0.006
    assert drawn.kl.mean() > kl - 4 * drawn.kl.std() / 200 - 1e-8  # which is a bound
    base = tabular.evaluate(objective, objective.reference).laws[0]
    assert ((law - base).abs().sum() < 1e-8) == (candidates == 1)


def test_with_the_exact_value_the_law_tends_to_the_tilted_one(problem):
    objective, solved = problem
    best = tabular.evaluate(objective, solved.policy)
    away = []
    for candidates in (1, 4, 16, 64):
        law, kl = exact_law(objective, exact_value(solved), candidates)
        away.append((law - best.laws[0]).abs().sum().item() / 2)
        assert (law @ SCORE).item() - ALPHA * kl < solved.optimum.item()
    assert away[1] < away[0] / 2 and away[2] < away[1] / 3 and away[3] < away[2] / 3.5  # as 1 / M
    assert away[3] < 0.015


def test_a_rough_value_leads_to_the_chain_that_it_twists():
    """Not to p_r: the value r(E[x_0 | x_t]) overshoots, by 1.686 - 1.519 with 50 steps at alpha 0.5."""
    reference = GaussianPolicy(
        gmm(gmm_schedule()), gmm_schedule(), (1,), prediction_type="sample", noise=FixedLarge()
    )
    objective = Objective(lambda x, c: x[:, 0], reference.double().requires_grad_(False), 0.5)
    axis = grid.Axis(-6, 6, 301)
    limit = grid.twist(objective, PosteriorMean(objective), axis)
    torch.manual_seed(0)
    drawn = SVDD(candidates=32).draw(objective, PosteriorMean(objective), unconditional(1500))
    error = drawn.reward.std().item() / 1500**0.5
    assert abs(drawn.reward.mean().item() - limit.reward.item()) < 4 * error + 0.02
    assert drawn.reward.mean().item() > grid.solve(objective, axis).reward.item() + 4 * error


@pytest.mark.parametrize("keep", ["all", "one"])
def test_any_proposal_is_corrected(problem, keep):
    objective, solved = problem
    torch.manual_seed(0)
    proposal = Tempered(solved.policy, 1.5)
    sampler = SVDD(candidates=4, particles=4, keep=keep)
    drawn = sampler.draw(objective, wrong_value, unconditional(5000), proposal)
    mean, error = relative_z(drawn.log_z, solved)
    assert abs(mean - 1) < 3 * error < 0.07
    assert len(drawn.sample) == 5000 * (4 if keep == "all" else 1)


def test_one_pass_serves_all_candidates(problem):
    objective, solved = problem
    for proposal in (None, Tempered(objective.reference, 1.5)):
        sampler = SVDD(candidates=7, particles=3)
        drawn = sampler.draw(objective, exact_value(solved), unconditional(5), proposal)
        assert drawn.network_calls["forward"] == 15 * STEPS  # the correction shares it
        assert drawn.reward_calls == 15 * 7


def test_the_best_candidate_has_a_bounded_kl_and_no_weight(problem):
    objective, solved = problem
    torch.manual_seed(0)
    sampler, count = SVDD(candidates=4, greedy=True), 20_000
    drawn = sampler.draw(objective, exact_value(solved), unconditional(count))
    assert drawn.log_z.isnan().all() and drawn.ess.isnan()
    assert drawn.kl.mean().item() == pytest.approx((STEPS + 1) * (math.log(4) - 3 / 4))
    initial, kernels = objective.reference.tables()
    law, kl = torch.ones(1, dtype=torch.float64), 0.0
    for t in range(STEPS, -1, -1):  # of four draws the best is y with F(v_y)^4 - F(v_y-)^4
        base = (initial[None] if t == STEPS else kernels[t]).detach()
        order = solved.values[t].argsort()
        best = (base[:, order].cumsum(1) ** 4).diff(dim=1, prepend=torch.zeros(len(base), 1))
        chosen = torch.zeros_like(base).index_copy(1, order, best)
        kl += (law @ (chosen * (chosen / base).log()).sum(1)).item()
        law = law @ chosen
    assert (law_of(drawn) - law).abs().sum().item() / 2 < 0.01
    assert 0.5 < kl < drawn.kl.mean().item()
    with pytest.raises(ValueError, match="greedy choices have no weights to resample 2 particles by"):
        SVDD(particles=2, greedy=True)


@pytest.mark.parametrize("particles", [1, 4])
def test_what_fails_on_the_way_changes_nothing_and_at_the_end_has_no_weight(problem, particles):
    _, solved = problem
    bad = torch.tensor([0, 0, 1, 0, 0, 0], dtype=torch.bool)

    def failing(x, c):
        return torch.where(bad[x[:, 0]], torch.nan, SCORE[x[:, 0]])

    objective = objective_of(Guard(failing, on_error="drop"))
    torch.manual_seed(0)
    sampler = SVDD(candidates=6, particles=particles)
    drawn = sampler.draw(objective, lambda x, t, c: failing(x, c) / 2, unconditional(8000 // particles))
    assert not bad[drawn.x_0[:, 0]].any() and drawn.reward.isfinite().all()
    best = tabular.evaluate(objective_of(), solved.policy).laws[0]
    mean, error = relative_z(drawn.log_z, solved)
    assert abs(mean - (1 - best[2].item())) < 3 * error < 0.09
    objective.reward.reward = lambda x, c: torch.full((len(x),), torch.nan)
    with pytest.raises(ValueError, match=f"none of the {particles} particles"):
        sampler.draw(objective, wrong_value, unconditional(2))


def test_the_chains_that_led_to_the_samples_are_chains(problem):
    objective, _ = problem
    torch.manual_seed(0)
    sampler = SVDD(candidates=3, particles=4, threshold=1.0)
    drawn = sampler.draw(objective, wrong_value, unconditional(20), history=True)
    path = drawn.path
    assert path is not None and torch.equal(path.states[-1], drawn.x_0)
    rows = path.transitions()
    log_p = decide(objective.reference, rows).log_prob(rows.x_next).view_as(path.log_prob)
    torch.testing.assert_close(log_p, path.log_prob)


def test_parts_that_fit_into_memory_draw_the_same_law():
    levels = gmm_schedule(5)
    reference = GaussianPolicy(gmm(levels), levels, (1,), prediction_type="sample", noise=FixedLarge())
    seen: list[int] = []
    reference.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    objective = Objective(lambda x, c: x[:, 0], reference.requires_grad_(False), 0.5)
    rows = []
    for memory in (1024.0, 0.015):
        seen.clear()
        torch.manual_seed(0)
        sampler = SVDD(candidates=4, particles=8, memory=memory)
        rows.append(
            (sampler.draw(objective, PosteriorMean(objective), unconditional(200)).summary(), max(seen))
        )
    (whole, most), (parts, few) = rows
    assert few < 100 < most
    assert parts["network_calls"] == whole["network_calls"] and parts["reward_calls"] == whole["reward_calls"]
    for name in ("reward", "log_z"):
        assert abs(parts[name] - whole[name]) < 4 * (parts[f"{name}_se"] + whole[f"{name}_se"])
