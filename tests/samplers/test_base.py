"""What samplers share: batches cut to memory, conditions kept apart, error bars of dependent samples."""

import math

import pytest
import torch

from difftilt.conditions import repeat, unconditional
from difftilt.objective import Objective
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import linear
from difftilt.samplers.result import Steered
from difftilt.samplers.smc import SMC
from difftilt.samplers.value_guidance import ValueGuidance
from difftilt.values.tweedie import PosteriorMean


class Denoiser(torch.nn.Module):
    """Expects x_0 = shift, and remembers how many rows it saw at a time."""

    def __init__(self):
        super().__init__()
        self.seen: list[int] = []

    def forward(self, x, time, cond):
        self.seen.append(len(x))
        return 0.5 * x + cond.get("shift", torch.zeros(len(x)))[:, None]


def problem():
    network = Denoiser()
    reference = GaussianPolicy(network, linear(6), (3,), prediction_type="sample").requires_grad_(False)
    return Objective(lambda x, c: x.sum(1), reference, 2.0), network


@pytest.mark.parametrize("sampler", [SMC, ValueGuidance])
def test_large_batches_go_in_parts_that_fit_into_memory(sampler):
    objective, network = problem()
    value = PosteriorMean(objective)
    rows = []
    for memory in (1024.0, 0.02):
        network.seen.clear()
        torch.manual_seed(0)
        found = sampler(memory=memory).draw(objective, value, unconditional(640)).summary()
        rows.append((found, max(network.seen)))
    (whole, most), (parts, few) = rows
    assert few < 100 < most
    assert parts["network_calls"] == whole["network_calls"] and parts["reward_calls"] == whole["reward_calls"]
    for name in ("reward", "log_z"):
        assert abs(parts[name] - whole[name]) < 4 * (parts[f"{name}_se"] + whole[f"{name}_se"])


def test_a_value_and_a_step_share_a_pass():
    objective, network = problem()
    value = PosteriorMean(objective)
    drawn = SMC(particles=4, threshold=1.0).draw(objective, value, unconditional(10))
    assert drawn.network_calls["forward"] == sum(network.seen[1:]) == 10 * 4 * 6  # first, one row's size
    assert objective.reference.network is network  # it remembers only while a sampler draws
    with torch.no_grad():
        for x in (torch.ones(2, 3), torch.zeros(2, 3)):  # another question passes
            value(x, torch.tensor([6, 6]), unconditional(2))
    assert sum(network.seen[1:]) == 10 * 4 * 6 + 4


def test_one_population_larger_than_memory_goes_through_the_network_in_parts():
    objective, network = problem()
    SMC(particles=500, memory=0.01).draw(objective, PosteriorMean(objective), unconditional(1))
    assert max(network.seen) < 100


def test_conditions_do_not_share_particles():
    objective, _ = problem()
    torch.manual_seed(0)
    cond = repeat({"shift": torch.tensor([-3.0, 3.0]), "prompt": ["low", "high"]}, 20)
    drawn = SMC(particles=8, memory=0.02).draw(objective, PosteriorMean(objective), cond)
    assert drawn.cond["prompt"] == ["low"] * 160 + ["high"] * 160
    assert drawn.x_0[:160].mean() < -1 and drawn.x_0[160:].mean() > 1
    assert drawn.population.tolist() == [k for k in range(40) for _ in range(8)]
    assert drawn.summary()["kl_is_upper_bound"]
    per_condition = [drawn.log_z[rows].logsumexp(0) - math.log(20) for rows in (slice(20), slice(20, None))]
    assert drawn.summary()["log_z"] == pytest.approx(sum(x.item() for x in per_condition) / 2)


def test_samples_of_one_population_are_no_independent_evidence():
    reward = torch.tensor([0.0, 0.0, 4.0, 4.0], dtype=torch.float64)
    log_z = torch.tensor([1.0, 3.0], dtype=torch.float64)
    population = torch.tensor([0, 0, 1, 1])
    drawn = Steered(
        torch.zeros(4, 1), torch.zeros(4, 1), unconditional(4), reward, reward - log_z[population],
        population, log_z, torch.tensor(0.5), 1.0, True,
    )  # fmt: skip
    row = drawn.summary()
    assert row["reward_se"] == pytest.approx(2.0)  # of two means, 0 and 4
    assert row["objective"] == pytest.approx(2.0)  # alpha times the mean of log Z
    assert row["log_z"] == pytest.approx(math.log((math.e + math.e**3) / 2))
