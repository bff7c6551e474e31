"""Reward-weighted likelihood: what each form's weights are, and where the minimum stands."""

import math
from typing import Any

import pytest
import torch
from problems import EveryPath, finite, flat, reversal

from difftilt.algorithms import advantages
from difftilt.algorithms.reward_weighted import SOFTER, RewardWeighted
from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.exact.toy import GaussianDenoiser
from difftilt.objective import Experience, Objective
from difftilt.policy import Trajectory
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import NoiseSchedule

F64 = torch.float64
UNUSED = finite().objective  # where weights need no value


def seen(reward, log_ratio=None, label=None, alpha=0.5, decisions=3):
    """Experience of which only the rewards, the ratios and the contexts matter."""
    reward = torch.as_tensor(reward, dtype=F64)
    ratio = torch.zeros(decisions, len(reward), dtype=F64) if log_ratio is None else log_ratio
    states = torch.zeros(decisions, len(reward), 1)
    cond = unconditional(len(reward)) if label is None else {"label": torch.as_tensor(label)}
    return Experience(Trajectory(states, states[-1], ratio, cond), reward, ratio, ratio, alpha)


def weights(experience, **settings):
    ids = experience.path.cond.get("label", torch.zeros(len(experience.reward), dtype=torch.long))
    return RewardWeighted(**settings)._weights(experience, UNUSED, ids)[0][0]


def enumerated(alpha=0.5):
    torch.manual_seed(0)
    score, policy = torch.randn(3, dtype=F64), EveryPath(3, 3)
    objective = Objective(lambda x, c: score[x[:, 0]], tabular.random_chain(3, 3), alpha)
    return policy, objective


def gradient_at(policy, tables, objective, cond, **settings):
    """The gradient of a round's loss once the policy has moved to other tables."""
    algorithm = RewardWeighted(epochs=2, minibatches=1, **settings)
    rounds = algorithm.losses(policy, objective, cond)
    next(rounds)
    policy.load_state_dict(tables.state_dict())
    return flat(next(rounds).value, policy)


def test_the_exact_minimum_is_the_tilted_chain():
    """The loss is convex in the tables' logits, so where its gradient is zero is its minimum."""
    policy, objective = enumerated()
    cond, solved = unconditional(len(policy.paths)), tabular.solve(objective).policy
    assert gradient_at(policy, solved, objective, cond).norm() < 1e-12


@pytest.mark.parametrize("wrong", [{"target": "iterated"}, {"temperature": 1.1}, {"select": "top"}], ids=str)
def test_no_other_weights_have_it_there(wrong):
    policy, objective = enumerated()
    cond, solved = unconditional(len(policy.paths)), tabular.solve(objective).policy
    assert gradient_at(policy, solved, objective, cond, **wrong).norm() > 1e-3


def test_nor_has_another_alpha():
    policy, objective = enumerated()
    cond, solved = unconditional(len(policy.paths)), tabular.solve(objective).policy
    other = Objective(objective.reward, objective.reference, 0.55)
    assert gradient_at(policy, solved, other, cond).norm() > 1e-3


@pytest.mark.parametrize("effective", [0.02, 0.1, 0.6])
def test_weights_leave_the_effective_share_that_is_asked_for(effective):
    """Where more is left without it, nothing changes; in the order of rewards they stay."""
    torch.manual_seed(0)
    reward = torch.randn(400, dtype=F64)
    near, far = (weights(seen(scale * reward), effective=effective) for scale in (0.05, 50.0))
    assert near.equal(weights(seen(0.05 * reward), effective=1e-9))
    harder = (far.log() / SOFTER).softmax(0)
    shares = [w.mean() ** 2 / w.square().mean() for w in (harder, far)]
    assert shares[0] < effective <= shares[1]
    assert (far[reward.argsort()].diff() >= 0).all()


def test_what_has_no_reward_does_not_soften_the_weights_of_others():
    reward = torch.full((400,), -torch.inf, dtype=F64)
    reward[:4] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    found = weights(seen(reward), effective=0.5)  # which cannot be
    assert found.isfinite().all() and (found[4:] == 0).all() and found.mean().item() == pytest.approx(1)


def tilted(objective, times):
    """p_pre exp(times r / alpha)."""
    return tabular.solve(Objective(objective.reward, objective.reference, objective.alpha / times)).policy


@pytest.mark.parametrize(("target", "aim"), [("iterated", 3), ("fixed", 1)])
def test_each_iterated_round_tilts_again_and_a_fixed_target_stays(target, aim):
    """From p_pre exp(2 r / alpha), what two rounds reach, the third aims at p_pre exp(3 r / alpha)."""
    problem = finite()
    objective = Objective(problem.objective.reward, problem.objective.reference, 4.0)
    lengths = {}
    for times in (1, 2, 3, 4):
        torch.manual_seed(0)
        policy, cond = tilted(objective, 2), unconditional(10_000)
        lengths[times] = gradient_at(policy, tilted(objective, times), objective, cond, target=target).norm()
    right = lengths.pop(aim)
    assert right < 0.03 < 0.04 < min(lengths.values())


@pytest.mark.parametrize("exact", [True, False])
def test_with_exact_values_the_steps_of_the_optimum_weigh_the_same(exact):
    problem = finite()
    solved = tabular.solve(problem.objective)
    values = solved.values if exact else 1.05 * solved.values

    def value(x, t, cond):
        return values[t, x[:, 0]]

    algorithm = RewardWeighted(form="value", value=value)
    experience = problem.objective.sample(solved.policy, unconditional(200))
    found = algorithm._weights(experience, problem.objective, torch.zeros(200, dtype=torch.long))[0]
    assert found.shape == (4, 200)
    assert (float((found - 1).abs().max()) < 1e-9) == exact


def test_the_value_form_has_its_minimum_at_the_optimum_too():
    policy, objective = enumerated()
    solved = tabular.solve(objective)

    def value(x, t, cond):
        return solved.values[t, x[:, 0]]

    cond = unconditional(len(policy.paths))
    settings = {"form": "value", "value": value}
    assert gradient_at(policy, solved.policy, objective, cond, **settings).norm() < 1e-12
    with torch.no_grad():
        solved.values[1] += torch.tensor([0.1, 0, 0])
    assert gradient_at(EveryPath(3, 3), solved.policy, objective, cond, **settings).norm() > 1e-3


def test_a_state_whose_reward_failed_teaches_nothing():
    """The value of a middle state is unknown: the decision that drew it weighs nothing."""
    problem = finite()

    def value(x, t, cond):
        return torch.where((t == 2) & (torch.arange(len(x)) == 3), torch.nan, 0.0)

    experience = problem.objective.sample(problem.start, unconditional(50))
    algorithm, ids = RewardWeighted(form="value", value=value), torch.zeros(50, dtype=torch.long)
    found, _ = algorithm._weights(experience, problem.objective, ids)
    assert found[1, 3] == 0
    assert found.isfinite().all()


def test_the_usual_value_is_the_reward_of_the_clean_sample_that_is_expected():
    problem = reversal()
    calls = problem.objective.reward.calls
    experience = problem.objective.sample(problem.start, unconditional(5))
    algorithm = RewardWeighted(form="value")
    values = algorithm._values(experience, problem.objective)
    policy: Any = problem.start
    alpha = policy.alpha.flip(0)
    for k, x in enumerate(experience.path.states):
        torch.testing.assert_close(values[k], alpha[k] * x[:, 0])  # E[x_0 | x_t] of N(0, 1) data
    assert problem.objective.reward.calls - calls == 5 * (1 + 4)


# weights

REWARDS = [0.3, -1.2, 2.0, 0.7, -0.4, 1.1, 0.0, 0.9]
LABELS = [0, 0, 1, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("target", ["fixed", "iterated"])
def test_weights_are_what_a_loop_says(target, temperature):
    torch.manual_seed(0)
    log_ratio = torch.randn(3, 8, dtype=F64)
    found = weights(seen(REWARDS, log_ratio, LABELS), target=target, temperature=temperature)
    raw = []
    for i, reward in enumerate(REWARDS):
        log_w = reward / 0.5 - (log_ratio[:, i].sum().item() if target == "fixed" else 0)
        raw.append(math.exp(log_w / temperature))
    for i, label in enumerate(LABELS):
        own = [w for w, other in zip(raw, LABELS, strict=True) if other == label]
        assert found[i].item() == pytest.approx(raw[i] / (sum(own) / len(own)))


@pytest.mark.parametrize(("keep", "kept"), [(0.5, 2), (0.25, 1), (1.0, 4)])
def test_top_keeps_the_best_of_each_context(keep, kept):
    found = weights(seen(REWARDS, label=LABELS), select="top", keep=keep)
    for label in (0, 1):
        own = [i for i, other in enumerate(LABELS) if other == label]
        best = sorted(own, key=lambda i: -REWARDS[i])[:kept]
        assert [found[i].item() for i in own] == [(i in best) / keep for i in own]


def test_percentile_keeps_those_above_the_rewards_of_earlier_rounds_too():
    algorithm, ids = RewardWeighted(select="percentile", keep=0.25), torch.zeros(8, dtype=torch.long)
    algorithm._weights(seen(REWARDS), UNUSED, ids)
    found = algorithm._weights(seen([r + 1 for r in REWARDS]), UNUSED, ids)[0][0]
    past = sorted(REWARDS + [r + 1 for r in REWARDS])
    place = 0.75 * (len(past) - 1)
    low, high = past[int(place)], past[int(place) + 1]
    threshold = low + (place - int(place)) * (high - low)
    assert found.tolist() == [4.0 * (r + 1 >= threshold) for r in REWARDS]
    assert 0 < sum(found) < 8 * 4


def test_the_history_is_saved_with_the_run():
    first, second = RewardWeighted(select="percentile"), RewardWeighted(select="percentile")
    first._weights(seen(REWARDS), UNUSED, torch.zeros(8, dtype=torch.long))
    second.load_state_dict(first.state_dict())
    assert list(second.history) == REWARDS


# contexts


def by_context(shift):
    """A finite chain with two contexts that reward other states, one of them more generously."""
    problem = finite()
    score = torch.tensor([[0.0, 1.0, -1.0], [0.5, -0.5, 0.2]], dtype=F64)

    def reward(x, cond):
        return score[cond["label"], x[:, 0]] + shift * cond["label"]

    torch.manual_seed(0)
    cond = {"label": torch.arange(2000) % 2}
    (loss,) = RewardWeighted(minibatches=1).losses(
        problem.elsewhere, Objective(reward, problem.objective.reference, 0.5), cond
    )
    return flat(loss.value, problem.elsewhere)


def test_a_generous_context_does_not_crowd_out_the_other():
    torch.testing.assert_close(by_context(0.0), by_context(5.0))


def test_one_softmax_over_all_contexts_would(monkeypatch):
    softmax = advantages.group_softmax
    monkeypatch.setattr(advantages, "group_softmax", lambda log_w, ids: softmax(log_w, 0 * ids))
    plain, generous = by_context(0.0), by_context(5.0)
    assert (plain - generous).norm() > 0.1 * plain.norm()


# effective sample size


@pytest.mark.parametrize("deviation", [0.25, 0.5, 1.0])
def test_the_effective_share_of_gaussian_returns_is_the_formula(deviation):
    """exp(-s^2) where r / alpha has the standard deviation s, in the limit of many samples."""
    problem = finite()
    torch.manual_seed(0)
    noise = 0.5 * deviation * torch.randn(20_000, dtype=F64)
    objective = Objective(lambda x, c: noise, problem.objective.reference, 0.5)
    cond = unconditional(len(noise))
    loss = next(RewardWeighted(minibatches=64).losses(problem.objective.reference, objective, cond))
    assert loss.stats["ess"].item() == pytest.approx(math.exp(-(deviation**2)), rel=0.05)


# the denoising form


def at_mean(mean, form):
    """The expected gradient at the chain that reverses the noising of N(mean, 1), and its ESS."""
    problem = reversal()
    policy: Any = problem.start
    grid = NoiseSchedule(policy.time, policy.alpha, policy.sigma)
    policy.network.base = GaussianDenoiser(grid, torch.tensor([mean]), torch.eye(1)).double()
    torch.manual_seed(0)
    algorithm = RewardWeighted(form=form, minibatches=1)
    (loss,) = algorithm.losses(policy, problem.objective, unconditional(10_000))
    return flat(loss.value, policy).norm().item(), loss.stats["ess"].item()


@pytest.mark.parametrize("form", ["denoising", "trajectory"])
def test_where_the_chain_reverses_its_noising_both_forms_rest_at_the_tilted_data(form):
    """N(0, 1) exp(x / alpha) is N(2, 1) for alpha = 0.5."""
    right, share = at_mean(2.0, form)
    assert right < 0.05 < 0.15 < min(at_mean(1.9, form)[0], at_mean(2.1, form)[0])
    assert share > 0.999 > at_mean(1.9, form)[1]


def test_the_denoising_form_notices_the_posterior_of_another_step(monkeypatch):
    posterior = GaussianPolicy.posterior
    monkeypatch.setattr(
        GaussianPolicy, "posterior", lambda self, x_0, x, t: posterior(self, x_0, x, (t - 1).clamp(min=1))
    )
    assert at_mean(2.0, "denoising")[0] > 0.15


def test_the_forms_that_noise_refuse_other_chains():
    problem = finite()
    for form in ("denoising", "value"):
        rounds = RewardWeighted(form=form).losses(problem.start, problem.objective, unconditional(8))
        with pytest.raises(ValueError, match=f"form '{form}' needs a chain that reverses"):
            next(rounds)
