"""J = E r - alpha KL: what is scored, what is dropped, and what it costs."""

import copy
from typing import Any

import pytest
import torch
import torch.nn as nn
from paths import path_kl
from torch import Tensor

from difftilt.algorithms import advantages
from difftilt.conditions import unconditional
from difftilt.guard import Guard, RewardError
from difftilt.objective import Experience, Objective, to_go
from difftilt.policy import path_log_prob, rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import linear
from difftilt.shapes import Cond


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return x / 2 + self.shift * (1 + x.sin())


def policy_of(shift: float, steps: int = 4) -> GaussianPolicy:
    policy = GaussianPolicy(Network(), linear(steps), (2,), prediction_type="sample").double()
    nn.init.constant_(policy.network.shift, shift)  # pyright: ignore
    return policy


def total(x: Tensor, cond: Cond) -> Tensor:
    return x.sum(1)


def test_experience_is_the_path_with_its_reward_and_both_kinds_of_kl():
    policy, reference = policy_of(0.1), policy_of(0.0)
    seen = Objective(total, reference, 0.5).sample(policy, unconditional(50))
    path = seen.path
    assert seen.reward.equal(total(path.sample, {}))
    torch.testing.assert_close(seen.kl, path_kl(policy, reference, path))
    ratio = path_log_prob(policy, path) - path_log_prob(reference, path)
    torch.testing.assert_close(seen.log_ratio, ratio.detach())
    assert seen.kl[0].eq(0).all() and seen.kl[1:].gt(0).all()
    assert not seen.log_ratio.requires_grad


def test_sampled_and_closed_form_kl_have_one_mean():
    seen = Objective(total, policy_of(0.0), 0.5).sample(policy_of(0.05), unconditional(20_000))
    gap = seen.log_ratio.sum(0) - seen.kl.sum(0)
    assert abs(gap.mean()) < 4 * gap.std() / len(gap) ** 0.5
    assert seen.kl.sum(0).mean() > 0.05


def test_statistics_are_means_with_standard_errors():
    seen = Objective(total, policy_of(0.0), 0.5).sample(policy_of(0.1), unconditional(64))
    stats = seen.stats()
    kl = seen.kl.sum(0)
    torch.testing.assert_close(stats["objective"], stats["reward"] - 0.5 * stats["kl_nats"])
    torch.testing.assert_close(stats["kl_nats"], kl.mean())
    torch.testing.assert_close(stats["objective_se"], (seen.reward - 0.5 * kl).std() / 8)


def test_costs_to_go_count_the_present_and_the_future():
    assert to_go(torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])).tolist() == [
        [6, 60],
        [5, 50],
        [3, 30],
    ]


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_a_kl_without_weight_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be above 0, but"):
        Objective(total, policy_of(0.0), alpha)


def test_chains_of_different_lengths_have_no_kl():
    objective = Objective(total, policy_of(0.0, steps=5), 1.0)
    with pytest.raises(ValueError, match="the reference takes 5 steps and the policy 4; "):
        objective.sample(policy_of(0.0), unconditional(2))


def faulty(x: Tensor, cond: Cond) -> Any:
    """Fails on a third of the samples, in three ways, whatever the batch they come in."""
    kind = (1000 * x[:, 0]).long().remainder(9).tolist()
    if any(k == 0 for k in kind):
        raise RuntimeError("no answer")
    values = {1: float("nan"), 2: float("-inf")}
    return [values.get(k, float(v)) for k, v in zip(kind, x.sum(1), strict=True)]


def broken_rows(x: Tensor) -> Tensor:
    return (1000 * x[:, 0]).long().remainder(9) < 3


def test_dropped_samples_never_influence_anything():
    """All that is learned from equals what the valid chains alone would have given."""
    policy, reference = policy_of(0.1), policy_of(0.0)
    cond: Cond = {"label": torch.arange(60) % 3}
    objective = Objective(Guard(faulty, on_error="drop"), reference, 0.5)
    torch.manual_seed(3)
    seen = objective.sample(policy, cond)
    torch.manual_seed(3)
    path = rollout(policy, cond)
    good = (~broken_rows(path.sample)).nonzero()[:, 0]
    assert 5 < len(good) < 55 and objective.reward.dropped == 60 - len(good)

    valid = path.chains(good)
    alone = Experience(
        valid,
        valid.sample.sum(1),
        (path_log_prob(policy, valid) - path_log_prob(reference, valid)).detach(),
        path_kl(policy, reference, valid).detach(),
        0.5,
    )
    assert seen.path.states.equal(valid.states) and seen.path.sample.equal(valid.sample)
    torch.testing.assert_close(seen.log_ratio, alone.log_ratio)
    torch.testing.assert_close(seen.kl, alone.kl)
    assert seen.kl[-1].std() > 0
    assert torch.as_tensor(seen.path.cond["label"]).equal(torch.as_tensor(cond["label"])[good])
    torch.testing.assert_close(seen.reward.double(), alone.reward, rtol=1e-6, atol=1e-6)
    for name, value in alone.stats().items():
        torch.testing.assert_close(seen.stats()[name].double(), value.double(), rtol=1e-5, atol=1e-6)
    returns = [e.reward.double() - 0.5 * to_go(e.kl) for e in (seen, alone)]
    ids = torch.as_tensor(seen.path.cond["label"])
    for advantage in (
        advantages.centre,
        lambda r: advantages.group(r, ids),
        lambda r: advantages.leave_one_out(r, ids),
    ):
        torch.testing.assert_close(advantage(returns[0]), advantage(returns[1]), rtol=1e-4, atol=1e-4)
        assert advantage(returns[0]).isfinite().all()


def test_too_few_valid_samples_stop_the_run():
    nothing = Guard(lambda x, c: x[:, 0] * float("nan"), name="taste", on_error="drop")
    objective = Objective(nothing, policy_of(0.0), 1.0)
    with pytest.raises(RewardError, match="'taste' is valid for 0 of 4 samples in round 0, too few"):
        objective.sample(policy_of(0.0), unconditional(4))


def test_a_plain_function_is_put_behind_a_guard():
    guard = Guard(total)
    assert Objective(guard, policy_of(0.0), 1.0).reward is guard
    objective = Objective(total, policy_of(0.0), 1.0)
    objective.sample(policy_of(0.0), unconditional(4))
    assert objective.reward.calls == 4 and objective.reward.name == "total"


def test_the_reference_is_not_touched():
    reference = policy_of(0.0)
    before = copy.deepcopy(reference.state_dict())
    Objective(total, reference, 1.0).sample(policy_of(0.3), unconditional(4))
    assert all(before[name].equal(value) for name, value in reference.state_dict().items())


def test_a_deviation_survives_a_large_mean():
    """In float32: a mean of squares less the square of the mean has no digit left here."""
    rewards = torch.tensor([[10_000.0, 10_000.1, 10_000.2, 10_000.3]])
    ids = torch.zeros(4, dtype=torch.long)
    assert advantages.spread(rewards, ids)[0, 0].item() == pytest.approx(0.1118, rel=0.02)
