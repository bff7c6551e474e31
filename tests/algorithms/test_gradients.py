"""PPO's expected first gradient is -grad J, and the tolerance notices each way of getting it wrong."""

import dataclasses

import problems
import pytest
import torch
from problems import EveryPath, cosine, flat

from difftilt import transition
from difftilt.algorithms import ppo
from difftilt.algorithms.advantages import clipped_surrogate
from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.exact import gaussian, tabular
from difftilt.objective import Loss, Objective, to_go
from difftilt.policy import Trajectory

COSINE, LENGTH = 0.999, 0.02


def first_gradient(objective, policy, cond, **settings):
    """Of one round's only loss: PPO as REINFORCE."""
    algorithm = PPO(epochs=1, minibatches=1, **{"normalize": False, **settings})
    algorithm.setup(policy, cond)
    (loss,) = algorithm.losses(policy, objective, cond)
    return -flat(loss.value, policy)


def agrees(found, expected):
    length = (found.norm() / expected.norm()).item()
    return cosine(found, expected) >= COSINE and abs(length - 1) <= LENGTH


def enumerated(alpha=0.5, **settings):
    """PPO's gradient and that of J, where a batch holds every path of a finite chain once: no noise."""
    torch.manual_seed(0)
    score, policy = torch.randn(4, dtype=torch.float64), EveryPath(4, 4)
    objective = Objective(lambda x, c: score[x[:, 0]], tabular.random_chain(4, 4), alpha)
    expected = flat(tabular.evaluate(objective, policy).objective, policy)
    return policy, objective, expected, unconditional(len(policy.paths))


def sampled(kl, size=100_000):
    """The same on a two-dimensional Gaussian chain, from samples."""
    problem = problems.affine(dimension=2)
    expected = flat(problem.exact(problem.elsewhere), problem.elsewhere)
    torch.manual_seed(1)
    found = first_gradient(problem.objective, problem.elsewhere, unconditional(size), kl=kl)
    return found, expected


@pytest.mark.parametrize("kl", ["reward", "both"])
def test_the_expected_first_gradient_is_exact(kl):
    policy, objective, expected, cond = enumerated()
    found = first_gradient(objective, policy, cond, kl=kl)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kl", ["reward", "both"])
def test_the_expected_first_gradient_is_exact_for_vectors(kl):
    assert agrees(*sampled(kl))


def test_the_kl_in_the_loss_alone_is_blind_to_later_decisions():
    policy, objective, expected, cond = enumerated()
    assert not agrees(first_gradient(objective, policy, cond, kl="loss"), expected)


def test_normalising_changes_the_length_only():
    policy, objective, expected, cond = enumerated()
    found = first_gradient(objective, policy, cond, normalize=True)
    assert cosine(found, expected) == pytest.approx(1, abs=1e-9)
    assert abs(found.norm() / expected.norm() - 1) > 0.1


def wrong_score(log_w, advantage, clip, dimensions):
    return clipped_surrogate(-log_w, advantage, clip, dimensions)


def descent(log_w, advantage, clip, dimensions):
    return -clipped_surrogate(log_w, advantage, clip, dimensions)


def mean_over_decisions(value, stats, share):
    return Loss(value / 5, stats, share)


def to_go_late(cost):
    return torch.cat([to_go(cost)[1:], torch.zeros_like(cost[:1])])


def to_go_without_the_next(cost):
    return cost + torch.cat([to_go(cost)[2:], torch.zeros_like(cost[:2])])


MUTATIONS = [
    ("Loss", mean_over_decisions, "reward"),
    ("Loss", mean_over_decisions, "both"),
    ("clipped_surrogate", wrong_score, "reward"),
    ("clipped_surrogate", wrong_score, "both"),
    ("clipped_surrogate", descent, "reward"),
    ("clipped_surrogate", descent, "both"),
    ("to_go", to_go_late, "reward"),  # with `both`, the present KL is a function of x_t: only a baseline
    ("to_go", to_go_without_the_next, "both"),
]


@pytest.mark.parametrize(("attribute", "broken", "kl"), MUTATIONS)
def test_the_gradient_test_notices(monkeypatch, attribute, broken, kl):
    owner = ppo.advantages if attribute == "clipped_surrogate" else ppo
    monkeypatch.setattr(owner, attribute, broken)
    policy, objective, expected, cond = enumerated()
    assert not agrees(first_gradient(objective, policy, cond, kl=kl), expected)


@pytest.mark.parametrize("kl", ["reward", "both"])
def test_the_gradient_test_notices_a_forgotten_kl(kl):
    policy, objective, expected, cond = enumerated()
    forgetful = Objective(objective.reward, objective.reference, 1e-12)
    assert not agrees(first_gradient(forgetful, policy, cond, kl=kl), expected)


def test_the_gradient_test_notices_a_mean_over_the_event(monkeypatch):
    monkeypatch.setattr(transition, "event_sum", lambda x: x.flatten(1).double().mean(1))
    assert not agrees(*sampled("both"))


@pytest.mark.parametrize("kl", ["reward", "both"])
def test_the_gradient_test_notices_rows_one_step_off(monkeypatch, kl):
    """The self-check refuses such rows; without it the gradient gives them away."""
    transitions = Trajectory.transitions

    def early(path, index=None):
        rows = transitions(path, index)
        return dataclasses.replace(rows, t=rows.t + 1)

    monkeypatch.setattr(Trajectory, "transitions", early)
    problem = problems.affine(dimension=2)
    with pytest.raises(ValueError, match="ratio"):
        first_gradient(problem.objective, problem.elsewhere, unconditional(100), kl=kl)
    monkeypatch.setattr(ppo, "check_ratio", lambda policy, path: None)
    assert not agrees(*sampled(kl))


BASELINES = [
    ("batch", 0.999),
    ("context", 0.999),
    ("group", 0.98),
    ("leave_one_out", 0.98),
    ("path", 0.999),
    ("critic", 0.999),
]


@pytest.mark.parametrize(("advantage", "bound"), BASELINES)
def test_every_baseline_leaves_the_expected_direction_as_it_is(advantage, bound):
    """A group is a random half of the paths, which leaves some noise in its gradient."""
    policy, objective, expected, cond = enumerated()
    if advantage != "critic":
        cond = {"context": torch.arange(len(policy.paths)) % 2}
    policy.paths = policy.paths[torch.randperm(len(policy.paths))]
    algorithm = PPO(epochs=1, minibatches=1, advantage=advantage, normalize=False)
    algorithm.setup(policy, cond)
    for parameter in algorithm.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for _ in range(2):  # in the second round the running means of `context` are known
        (loss,) = algorithm.losses(policy, objective, cond)
        found = -flat(loss.value, policy)
        assert cosine(found, expected) > bound
        assert found.norm() / expected.norm() == pytest.approx(1, abs=0.1)


def test_one_step_raises_the_reward_and_the_companion_s_formula_lowers_it(monkeypatch):
    """A published PPO has (eps + (mean_new - mean_old) / std)^2 in its log-density: its score is reversed."""
    rises = {}
    for name in ("right", "companion"):
        problem = problems.affine(dimension=1, steps=1)
        if name == "companion":
            monkeypatch.setattr(ppo.advantages, "clipped_surrogate", wrong_score)
        policy, reward = problem.start, problem.bowl
        torch.manual_seed(0)
        optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], 0.05)
        before, after = [], []
        for row in (before, after):
            chain = gaussian.affine(policy)
            row.append(gaussian.evaluate(chain, chain, reward, 1.0).reward.item())
            gradient = first_gradient(problem.objective, policy, unconditional(4000), kl="reward")
            start = 0
            for p in optimizer.param_groups[0]["params"]:
                p.grad = -gradient[start : start + p.numel()].view_as(p)
                start += p.numel()
            optimizer.step()
        rises[name] = after[0] - before[0]
    assert rises["right"] > 0.01
    assert rises["companion"] < -0.01
