"""Corrector moves: what they leave as it is, what they mend, and what they cost, by exact distributions."""

from typing import Any

import pytest
import torch
from enumeration import Table, every_state
from paths import path_kl

from difftilt.algorithms.distill import Distill
from difftilt.conditions import unconditional
from difftilt.exact import grid, landscape
from difftilt.exact.toy import GaussianDenoiser, gmm, gmm_schedule
from difftilt.guidance.corrected import Corrected
from difftilt.guidance.start import TunedStart
from difftilt.guidance.value_guided import ValueGuided
from difftilt.objective import Objective
from difftilt.policy import rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.masked import MaskedPolicy
from difftilt.processes.noise import FixedLarge
from difftilt.processes.schedule import from_betas
from difftilt.samplers.mcmc import MCMC

AXIS = grid.Axis(-7, 10, 426)
F64 = torch.float64


def chain(network, levels):
    settings: Any = {"prediction_type": "sample", "noise": FixedLarge()}
    return GaussianPolicy(network, levels, (1,), **settings).double().requires_grad_(False)


@pytest.fixture(scope="module")
def exact():
    """Data N(0.7, 1) and a chain that reverses its noise exactly and forgets x_T; r = x has linear values."""
    levels = from_betas(torch.tensor([0.2, 0.3, 0.5, 1 - 1e-12], dtype=F64))
    return Objective(
        lambda x, c: x[:, 0], chain(GaussianDenoiser(levels, torch.tensor([0.7]), torch.eye(1)), levels), 0.5
    )


def distance(law, other):
    return ((law - other).abs().sum() / 2).item()


@pytest.mark.parametrize("corrections", [1, 3])
def test_gibbs_moves_keep_the_law_of_the_reference_and_of_the_optimum(exact, corrections):
    sampler, solved = MCMC(corrections=corrections), grid.solve(exact, AXIS)
    longer = sampler.extend(exact)
    before = grid.evaluate(exact, exact.reference, AXIS)
    assert distance(grid.evaluate(longer, longer.reference, AXIS).law, before.law) < 1e-6
    tilted = grid.evaluate(longer, sampler.guide(exact.reference, exact, solved.value), AXIS)
    assert distance(tilted.law, solved.law) < 1e-6
    assert distance(before.law, solved.law) > 0.5


def test_noise_of_another_level_would_move_the_law(exact):
    """So that the last test can fail."""

    class Louder(GaussianPolicy):
        def noising(self, x_next, t):
            return super().noising(x_next, (t + 1).clamp(max=self.steps))

    reference = exact.reference
    levels = from_betas(torch.tensor([0.2, 0.3, 0.5, 1 - 1e-12], dtype=F64))
    settings: Any = {"prediction_type": "sample", "noise": FixedLarge()}
    louder = Louder(reference.network, levels, (1,), **settings)
    longer = Objective(exact.reward, Corrected(reference, louder, "gibbs", 1, 0.1), 0.5)
    found = grid.evaluate(longer, longer.reference, AXIS)
    assert distance(found.law, grid.evaluate(exact, reference, AXIS).law) > 1e-3


def test_langevin_moves_keep_both_laws_up_to_an_error_in_their_size(exact):
    """The variance of a Gaussian distribution is off by a share of about step / 2 per unit of time."""
    solved, off = grid.solve(exact, AXIS), {}
    for step in (0.2, 0.1):
        sampler = MCMC(corrector="langevin", corrections=2, step=step)
        longer = sampler.extend(exact)
        before = grid.evaluate(longer, longer.reference, AXIS)
        tilted = grid.evaluate(longer, sampler.guide(exact.reference, exact, solved.value), AXIS)
        off[step] = (
            distance(before.law, grid.evaluate(exact, exact.reference, AXIS).law),
            distance(tilted.law, solved.law),
        )
    for coarse, fine in zip(off[0.2], off[0.1], strict=True):
        assert 2.5 * fine < coarse < 0.01


def test_moves_mend_first_order_guidance():
    """Those of guidance by the exact value, whose error is that of the expansion of each step."""
    reference = chain(gmm(gmm_schedule()), gmm_schedule())
    objective = Objective(lambda x, c: torch.sin(3 * x[:, 0]), reference, 0.25)
    axis = grid.Axis(-5, 4, 226)
    solved = grid.solve(objective, axis)
    guided = ValueGuided(reference, objective, solved.value)
    alone = distance(grid.evaluate(objective, guided, axis).law, solved.law)
    sampler = MCMC(corrections=2)
    policy, longer = sampler.guide(reference, objective, solved.value), sampler.extend(objective)
    assert distance(grid.evaluate(longer, policy, axis).law, solved.law) < 0.75 * alone


def test_the_kl_of_a_langevin_move_has_a_closed_form(exact):
    """h |grad v / alpha|^2 / 4, here with grad v / alpha = 3 everywhere."""
    sampler = MCMC(corrector="langevin", step=0.2)
    policy = sampler.guide(exact.reference, exact, lambda x, t, c: 1.5 * x[:, 0])
    longer = sampler.extend(exact).reference
    torch.manual_seed(0)
    kl = path_kl(policy, longer, rollout(policy, unconditional(5)))
    sigma = exact.reference.sigma
    assert policy.steps == 4 + 3
    for position, level in ((2, 3), (4, 2), (6, 1)):
        assert torch.allclose(kl[position], 0.2 * sigma[level] ** 2 * 9 / 4)


def test_noise_costs_nothing_and_leaves_the_ratio_alone(exact):
    sampler = MCMC(corrections=2)
    policy = sampler.guide(exact.reference, exact, lambda x, t, c: x[:, 0])
    seen = sampler.extend(exact).sample(policy, unconditional(6))
    noise = torch.tensor([False] + [False, True, False, True, False] * 4)
    assert seen.kl[noise].abs().max() == seen.log_ratio[noise].abs().max() == 0
    assert seen.kl[~noise][1:].min() > 0


def test_rows_of_all_kinds_are_answered_together(exact):
    for sampler in (MCMC(corrections=2), MCMC(corrector="langevin", corrections=2)):
        policy = sampler.guide(exact.reference, exact, lambda x, t, c: x[:, 0].sin())
        t = torch.arange(policy.steps, 0, -1)
        x = torch.randn(len(t), 1, dtype=F64)
        together = policy(x, t, unconditional(len(t)))
        for row in range(len(t)):
            alone = policy(x[[row]], t[[row]], unconditional(1))
            assert torch.allclose(alone.mean[0], together.mean[row])
            assert torch.allclose(alone.std[0], together.std[row])


def last_law(policy, states):
    """Probability of every state under x_0, from those that can be on the way."""
    law = policy.initial(unconditional(len(states))).log_prob(states).exp()
    for t in range(policy.steps, 0, -1):
        now = (law > 0).nonzero()[:, 0]
        x, count = states[now].repeat_interleave(len(states), 0), len(now) * len(states)
        step = policy(x, torch.full((count,), t), unconditional(count))
        law = law[now] @ step.log_prob(states.repeat(len(now), 1)).exp().view(len(now), -1)
    return law


def test_gibbs_moves_of_tokens_keep_both_laws():
    torch.manual_seed(0)
    states, clean = every_state(4, 3), every_state(3, 3)  # token 3 is the mask
    joint = torch.rand(len(clean), dtype=F64) ** 2
    agree = ((states[:, None] == clean) | (states[:, None] == 3)).all(2) * joint  # (state, clean state)
    marginals = torch.stack([agree @ (clean == token).to(F64) for token in range(3)], 2)
    reference = MaskedPolicy(Table((marginals + 1e-300).log()), 3, 3).double().requires_grad_(False)
    score = torch.randn(27, dtype=F64)
    objective = Objective(lambda x, c: score[x @ torch.tensor([9, 3, 1])], reference, 0.5)
    solved, sampler, whole = landscape.solve(objective), MCMC(corrections=2), (states < 3).all(1)
    law = last_law(sampler.extend(objective).reference, states)[whole]
    assert (law - joint / joint.sum()).abs().max() < 1e-12
    law = last_law(sampler.guide(reference, objective, solved.value), states)[whole]
    assert (law - solved.law).abs().max() < 1e-12
    assert distance(solved.law, joint / joint.sum()) > 0.3


def test_log_z_of_the_longer_chain_is_that_of_the_chain(exact):
    torch.manual_seed(0)
    value = grid.solve(exact, AXIS).value
    summary = MCMC(corrections=2).draw(exact, value, unconditional(400)).summary()
    log_z = grid.solve(exact, AXIS).optimum.item() / exact.alpha
    assert summary["log_z"] == pytest.approx(log_z, abs=4 * summary["log_z_se"])
    assert 0 < summary["log_z_se"] < 0.4


def test_the_chain_with_moves_is_distilled_by_its_samples(exact):
    policy = chain(exact.reference.network, from_betas(torch.tensor([0.2, 0.3, 0.5, 0.99], dtype=F64)))
    policy = TunedStart(policy)
    found = {}
    for form in ("denoising", "trajectory"):
        losses = Distill(MCMC(), form=form).losses(policy, exact, unconditional(8))
        if form == "denoising":
            found = next(iter(losses)).stats
            continue
        with pytest.raises(ValueError, match="take 12 steps and the policy's 4"):
            next(iter(losses))
    assert found["sampler_reward"] > found["reward"]


def test_what_cannot_be_corrected_is_refused(exact):
    tabular = Objective(
        lambda x, c: x[:, 0], Corrected(exact.reference, exact.reference, "gibbs", 1, 0.1), 1.0
    )
    with pytest.raises(ValueError, match="which a Corrected is not"):
        MCMC().extend(tabular)
    masked = MaskedPolicy(Table(torch.zeros(64, 3, 3)), 3, 3)
    langevin = Corrected(masked, masked, "langevin", 1, 0.1)
    with pytest.raises(ValueError, match="Langevin moves need Gaussian noise"):
        langevin._langevin(
            torch.zeros(1, 3, dtype=torch.long), torch.ones(1, dtype=torch.long), unconditional(1)
        )
