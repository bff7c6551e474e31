"""Particles: log Z is unbiased whatever the value, and exact with an exact one; particles tend to p_r."""

import math
import warnings

import pytest
import torch

from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.guard import Guard
from difftilt.guidance.tempered import Tempered
from difftilt.objective import Objective
from difftilt.policy import decide
from difftilt.samplers.smc import SMC

ALPHA, STATES, STEPS = 0.5, 6, 5
SCORE = torch.tensor([1.2, -0.3, 0.4, -1.1, 0.1, 0.6], dtype=torch.float64)


def objective_of(reward=None):
    return Objective(reward or (lambda x, c: SCORE[x[:, 0]]), tabular.random_chain(STATES, STEPS), ALPHA)


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(3)
    objective = objective_of()
    return objective, tabular.solve(objective)


def law_of(solved):
    """p_r, the distribution that the optimal policy draws."""
    objective = Objective(lambda x, c: SCORE[x[:, 0]], solved.policy, ALPHA)
    return tabular.evaluate(objective, solved.policy).laws[0]


def exact_value(solved):
    return lambda x, t, c: solved.values[t, x[:, 0]]


def wrong_value(x, t, c):
    return torch.sin(x[:, 0] + 2.0 * t).double() * 0.6


def relative_z(log_z, solved):
    """The mean of the estimates of Z over Z, and its standard error."""
    ratio = (log_z - solved.optimum / ALPHA).exp()
    return ratio.mean().item(), (ratio.std() / len(ratio) ** 0.5).item()


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_z_is_unbiased_with_and_without_resampling(problem, potential, threshold):
    objective, solved = problem
    torch.manual_seed(0)
    sampler = SMC(particles=4, threshold=threshold, potential=potential)
    size = {"difference": 1.0, "max": 0.7, "sum": 0.2}[potential]  # products of many terms have heavy tails
    drawn = sampler.draw(objective, lambda x, t, c: size * wrong_value(x, t, c), unconditional(6000))
    mean, error = relative_z(drawn.log_z, solved)
    assert abs(mean - 1) < 3 * error
    assert error < 0.025  # dropping weights where nothing is resampled makes it 3.1, 0.46 and 2.0


def test_with_a_perfect_value_there_is_nothing_to_correct(problem):
    objective, solved = problem
    torch.manual_seed(0)
    drawn = SMC(particles=8, threshold=1.0).draw(objective, exact_value(solved), unconditional(50))
    assert drawn.ess.item() < 0.99  # chains of the reference differ in weight
    again = SMC(particles=4).draw(objective, exact_value(solved), unconditional(50), solved.policy)
    torch.testing.assert_close(again.log_z, (solved.optimum / ALPHA).expand(50), atol=1e-9, rtol=0)
    assert again.ess.item() == pytest.approx(1)


def test_the_law_of_a_particle_tends_to_the_tilted_law(problem):
    objective, solved = problem
    torch.manual_seed(0)
    distance = []
    for particles in (2, 8, 64):
        drawn = SMC(particles=particles).draw(objective, wrong_value, unconditional(40_000 // particles))
        law = torch.bincount(drawn.x_0[:, 0], minlength=STATES) / len(drawn.x_0)
        distance.append((law - law_of(solved)).abs().sum().item() / 2)
    assert distance[0] > 3 * distance[1] > distance[2] and distance[2] < 0.012


@pytest.mark.parametrize("keep", ["all", "one"])
def test_any_proposal_is_corrected(problem, keep):
    objective, solved = problem
    torch.manual_seed(0)
    proposal = Tempered(objective.reference, 1.5)
    drawn = SMC(particles=16, keep=keep).draw(objective, wrong_value, unconditional(3000), proposal)
    mean, error = relative_z(drawn.log_z, solved)
    assert abs(mean - 1) < 3 * error < 0.06
    assert len(drawn.sample) == 3000 * (16 if keep == "all" else 1)


def test_j_is_known_from_below(problem):
    objective, solved = problem
    torch.manual_seed(0)
    bounds = []
    for particles in (2, 8, 32):
        row = SMC(particles=particles).draw(objective, wrong_value, unconditional(2000)).summary()
        assert row["objective"] == pytest.approx(row["reward"] - ALPHA * row["kl_nats"], abs=1e-9)
        assert row["objective"] < solved.optimum.item() + 3 * row["objective_se"]
        bounds.append(row["objective"])
    assert bounds[0] < bounds[1] < bounds[2]
    assert solved.optimum.item() - bounds[2] < 0.02


def test_the_chains_that_led_to_the_samples_are_chains(problem):
    torch.manual_seed(0)
    objective, _ = problem
    drawn = SMC(particles=8, threshold=1.0).draw(objective, wrong_value, unconditional(20), history=True)
    path = drawn.path
    assert path is not None and path.log_prob.shape == (STEPS + 1, 160)
    assert torch.equal(path.states[-1], drawn.x_0)
    rows = path.transitions()
    log_p = decide(objective.reference, rows).log_prob(rows.x_next).view_as(path.log_prob)
    torch.testing.assert_close(log_p, path.log_prob)


def test_a_failed_reward_has_no_weight_and_is_no_zero(problem):
    _, solved = problem
    bad = torch.tensor([0, 0, 1, 0, 0, 0], dtype=torch.bool)

    def failing(x, c):
        return torch.where(bad[x[:, 0]], torch.nan, SCORE[x[:, 0]])

    torch.manual_seed(3)
    objective = objective_of(Guard(failing, on_error="drop"))
    torch.manual_seed(0)
    drawn = SMC(particles=1024).draw(objective, lambda x, t, c: failing(x, c), unconditional(40))
    assert not bad[drawn.x_0[:, 0]].any() and drawn.reward.isfinite().all()
    expected = torch.where(bad, 0, law_of(solved))
    law = torch.bincount(drawn.x_0[:, 0], minlength=STATES) / len(drawn.x_0)
    assert (law - expected / expected.sum()).abs().sum().item() / 2 < 0.03
    mean, error = relative_z(drawn.log_z, solved)
    assert abs(mean - (1 - law_of(solved)[2].item())) < 3 * error < 0.1
    objective.reward.reward = lambda x, c: torch.full((len(x),), torch.nan)
    with pytest.raises(ValueError, match="none of the 32 particles"):
        SMC(particles=32).draw(objective, wrong_value, unconditional(2))


def test_calls_are_counted(problem):
    _, solved = problem
    torch.manual_seed(3)
    objective = objective_of()
    drawn = SMC(particles=4).draw(objective, exact_value(solved), unconditional(5))
    assert drawn.reward_calls == 20  # once per sample, at the end

    def from_reward(x, t, c):
        return objective.reward(x, c).double()

    drawn = SMC(particles=4).draw(objective, from_reward, unconditional(5))
    assert drawn.reward_calls == 20 * (STEPS + 1)


def test_one_population_tells_no_error_and_does_not_complain(problem):
    objective, _ = problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = SMC(particles=8, keep="all").draw(objective, wrong_value, unconditional(1)).summary()
    assert math.isfinite(row["log_z"]) and math.isnan(row["log_z_se"])


def test_settings_out_of_range_are_refused():
    for settings in ({"particles": 0}, {"threshold": 1.5}, {"memory": 0.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            SMC(**settings)  # pyright: ignore[reportArgumentType]
