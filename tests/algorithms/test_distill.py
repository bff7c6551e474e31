"""Distilled samplers: fair weights, the pairs that are imitated, and numbers that are the policy's own."""

import copy
import dataclasses

import pytest
import torch
from problems import finite, flat, reversal
from test_tokens import gap, problem

from difftilt.algorithms.distill import Distill
from difftilt.conditions import unconditional
from difftilt.exact import tabular
from difftilt.objective import Objective
from difftilt.samplers.base import Steering
from difftilt.samplers.result import Steered
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.training.fit import fit


def gradient_at(policy, objective, algorithm, size):
    torch.manual_seed(0)
    return flat(next(iter(algorithm.losses(policy, objective, unconditional(size)))).value, policy)


def wrong(x, t, cond):
    """A value that misleads."""
    return -0.3 * x[:, 0].double()


@pytest.mark.parametrize("keep", ["all", "one"])
def test_weighted_samples_of_few_misled_particles_have_their_minimum_at_the_optimum(keep):
    """A population of two is far from p_r, but fair with its weight. Without it the gradient stays."""
    task, sampler = finite(), SMC(particles=2, keep=keep, threshold=1.0)
    objective = Objective(task.objective.reward, task.objective.reference, 1.0)
    best = tabular.solve(objective).policy
    length = {}
    for weighted in (True, False):
        algorithm = Distill(sampler, weighted=weighted, minibatches=1, value=wrong)
        length[weighted] = gradient_at(best, objective, algorithm, 12_000).norm().item()
    assert length[True] < 0.03
    assert length[False] > 5 * length[True]


@pytest.mark.parametrize("form", ["trajectory", "denoising"])
def test_both_forms_reach_the_optimum(form):
    torch.manual_seed(0)
    task = reversal()
    before = task.optimum - task.exact(task.start).item()
    optimizer = torch.optim.Adam([p for p in task.start.parameters() if p.requires_grad], 0.03)
    conds = [unconditional(256)] * 25
    list(fit(task.start, task.objective, Distill(SMC(particles=8), form=form), conds, optimizer))
    assert 0 <= task.optimum - task.exact(task.start).item() < 0.1 * before


def test_smc_on_tokens_is_distilled_too():
    objective, policy = problem()
    before = gap(objective, policy)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    list(fit(policy, objective, Distill(SMC(particles=8)), [unconditional(256)] * 30, optimizer))
    assert 0 <= gap(objective, policy) < 0.1 * before


def test_unweighted_guidance_is_imitated_as_it_is():
    """The guided chain is the minimum of its own imitation, and not of the weighted one."""
    task = reversal()
    sampler, value = ValueGuidance(start=False), lambda x, t, cond: 2 * x[:, 0]
    guided = sampler.guide(copy.deepcopy(task.start), task.objective, value)
    cost = {}
    for weighted in (False, True):
        losses = Distill(sampler, weighted=weighted, value=value, minibatches=1)
        torch.manual_seed(0)
        steered = sampler.draw(task.objective, value, unconditional(4000), history=True)
        weight, rows = losses._weights(steered), torch.arange(4000 * (task.start.steps + 1))
        cost[weighted] = [
            (weight.repeat(task.start.steps + 1) * losses._cost(policy, steered, rows)).mean().item()
            for policy in (guided, task.best)
        ]
    assert cost[False][0] < cost[False][1]
    assert cost[True][0] > cost[True][1]


def steered_with(log_z, label):
    count = len(label)
    x, zero = torch.zeros(count, 1), torch.zeros(count, dtype=torch.float64)
    population = torch.arange(len(log_z)).repeat_interleave(count // len(log_z))
    log_z = torch.tensor(log_z, dtype=torch.float64)
    return Steered(x, x, {"label": label}, zero, zero, population, log_z, torch.tensor(1.0), 1.0, True)


def test_weights_have_mean_one_in_each_context():
    label = torch.tensor([0, 0, 0, 0, 1, 1])
    weight = Distill(SMC())._weights(steered_with([1000.0, 1001.0, -5.0], label))
    ratio = 2 / (1 + torch.tensor(1.0).exp())
    assert torch.allclose(weight.float(), torch.tensor([ratio, ratio, 2 - ratio, 2 - ratio, 1, 1]))


def test_samples_without_an_estimate_of_z_weigh_the_same():
    nan = float("nan")
    label = torch.tensor([0, 0, 1, 1])
    assert Distill(SMC())._weights(steered_with([nan, nan], label)).tolist() == [1.0] * 4
    assert Distill(SMC(), weighted=False)._weights(steered_with([0.0, 3.0], label)).tolist() == [1.0] * 4


@pytest.mark.parametrize(("keep", "populations"), [("all", 4), ("one", 32)])
def test_a_round_gives_one_sample_per_condition(keep, populations):
    seen = []

    class Watched(SMC):
        def _draw(self, steering: Steering, cond):
            seen.append(super()._draw(steering, cond))
            return seen[-1]

    task = reversal()
    algorithm = Distill(Watched(particles=8, keep=keep), epochs=3, minibatches=5)
    losses = list(algorithm.losses(task.start, task.objective, unconditional(32)))
    assert len(losses) == 15
    assert (len(seen[0].reward), len(seen[0].log_z)) == (32, populations)


def test_the_numbers_are_the_policys_and_the_samplers_stand_apart():
    """Before the first step the policy is the reference, whatever the sampler earns."""
    task = reversal()
    algorithm = Distill(SMC(particles=16), judged=4000)
    stats = next(iter(algorithm.losses(task.start, task.objective, unconditional(4000)))).stats
    assert stats["kl_nats"] < 1e-12
    assert stats["reward"].abs() < 4 * stats["reward_se"]
    assert stats["sampler_reward"] > 1
    assert stats["sampler_kl_nats"] > 1
    assert stats["sampler_objective"] > 0.5


def test_chains_of_another_length_are_refused_unless_they_are_noised_anew():
    task, longer = reversal(), Longer(particles=1)
    with pytest.raises(ValueError, match=r"8 steps and the policy's 4.*form 'denoising'"):
        next(iter(Distill(longer).losses(task.start, task.objective, unconditional(8))))
    found = Distill(longer, form="denoising").losses(task.start, task.objective, unconditional(8))
    assert next(iter(found)).value.isfinite()


class Longer(SMC):
    """Takes every step twice."""

    def _draw(self, steering, cond):
        found = super()._draw(steering, cond)
        if found.path is None:
            return found
        states = torch.cat([found.path.states[:-1], found.path.states])
        return dataclasses.replace(found, path=dataclasses.replace(found.path, states=states))


def test_the_denoising_form_says_what_it_needs():
    task = finite()
    with pytest.raises(ValueError, match="TabularPolicy is not; use form 'trajectory'"):
        next(
            iter(
                Distill(SMC(), form="denoising", value=wrong).losses(
                    task.start, task.objective, unconditional(16)
                )
            )
        )
