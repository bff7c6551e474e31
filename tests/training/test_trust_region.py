"""The step size follows how far a round moves the policy, whatever the network and the reward."""

import copy
import math
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from toy_run import make_policy

from difftilt import PPO, GaussianPolicy, Objective, fit, unconditional
from difftilt.training.settings import Training
from difftilt.training.trust_region import LARGEST, TrustRegion

BATCH, CLIPPED = 64, Training(max_norm=0.1)


def trained(scale: float, rate: float, share: float, rounds: int = 12, steep: float = 1.0):
    """The rates of all rounds, and J of the policy less that of the reference.

    Args:
        scale: Range of the reward; alpha is 1.
        steep: What a unit of a weight does to the network's answer.
    """
    policy: Any = make_policy()
    with torch.no_grad():
        policy.network.layers[0].weight /= steep
    policy.network.layers[0].register_forward_pre_hook(lambda _, x: (x[0] * steep,))
    reference = copy.deepcopy(policy).requires_grad_(False)
    objective = Objective(lambda x, c: scale * torch.tanh(3 * x[:, 0]), reference, 1.0)
    optimizer = torch.optim.Adam(policy.parameters(), rate)
    region = TrustRegion(optimizer, Accelerator(cpu=True), share) if share else None
    rates = []
    for number in range(rounds):
        cond = [unconditional(BATCH)]
        rows = list(fit(policy, objective, PPO(), cond, optimizer, CLIPPED, start=number, region=region))
        rates.append(rows[-1].get("learning_rate", rate))
    torch.manual_seed(0)
    found, before = (objective.sample(p, unconditional(4000)).stats() for p in (policy, reference))
    return rates, (found["objective"] - before["objective"]).item()


def test_a_rate_that_is_far_too_large_does_not_cost_more_than_the_reward_gains():
    gained, lost = (trained(scale=0.02, rate=0.3, share=share)[1] for share in (0.3, 0.0))
    assert lost < -0.02 < -0.001 < gained


def test_a_rate_that_is_far_too_small_is_found_to_be():
    gained, hardly = (trained(scale=2.0, rate=1e-4, share=share)[1] for share in (0.3, 0.0))
    assert gained > 4 * hardly > 0


def test_a_rate_depends_on_what_weights_do():
    rates = [sorted(trained(2.0, 1e-3, 0.1, steep=steep)[0])[-4] for steep in (1.0, 30.0)]
    assert rates[0] > 1.5 * rates[1]  # where weights of the first layer do more, their steps are smaller


def test_rates_grow_no_further_than_weights_are_large():
    assert max(trained(scale=50.0, rate=1e-3, share=10.0, rounds=6)[0]) == pytest.approx(LARGEST)


def test_what_a_schedule_took_away_is_not_given_back():
    """At a tenth of the rate a round moves a hundredth as far, which is what was asked for."""
    policy: Any = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    optimizer.param_groups[0].update(initial_lr=1e-2, lr=2e-3, factor=1.0)
    region, cond = TrustRegion(optimizer, Accelerator(cpu=True), 0.1), unconditional(BATCH)
    moved = []
    for shift in (0.0, 1.0):
        region.begin(policy, cond, 9)
        with torch.no_grad():
            policy.network.layers[2].bias += shift / 50
        region.update({"round": 9, "asked_nats": 1.0})
        moved.append(optimizer.param_groups[0]["factor"])
        assert optimizer.param_groups[0]["lr"] == 2e-3
    assert moved[0] == pytest.approx(LARGEST / 1e-2)  # nothing moved
    optimizer.param_groups[0]["lr"] = 1e-4  # of which the schedule has left a hundredth
    region.begin(policy, cond, 9)
    region.update({"round": 9, "asked_nats": 1.0})
    assert optimizer.param_groups[0]["factor"] == moved[1]


@pytest.mark.parametrize("asked", [math.nan, None])
def test_without_a_number_to_go_by_the_rate_stays(asked):
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    region = TrustRegion(optimizer, Accelerator(cpu=True), 0.1)
    region.begin(policy, unconditional(1), 0)
    factor = optimizer.param_groups[0]["factor"]
    region.update({"round": 0} | ({} if asked is None else {"asked_nats": asked}))
    assert optimizer.param_groups[0]["factor"] == factor


def test_a_run_that_began_without_one_goes_on_at_its_rate():
    policy = make_policy()
    optimizer = torch.optim.Adam(policy.parameters(), 1e-2)
    assert TrustRegion(optimizer, Accelerator(cpu=True), 0.1).begin(policy, unconditional(4), 7) == 1e-2


def test_at_the_reference_what_is_asked_for_is_the_kl_of_the_optimum_to_second_order():
    policy: GaussianPolicy = make_policy().requires_grad_(False)
    small = Objective(lambda x, c: 0.1 * x[:, 0], policy, 1.0)
    torch.manual_seed(0)
    seen = small.sample(policy, unconditional(20000))
    weight = seen.reward.softmax(0)
    kl = (weight * (weight * len(weight)).log()).sum()
    assert seen.stats()["asked_nats"].item() == pytest.approx(kl.item(), rel=0.1)


def test_a_share_below_zero_is_refused():
    with pytest.raises(ValueError, match="trust_region must be"):
        Training(trust_region=-1.0)
