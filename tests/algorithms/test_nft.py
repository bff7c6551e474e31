"""DiffusionNFT: its gradient is that of the regression it claims, weighted by 2 q - 1."""

from typing import Any

import pytest
import torch
from problems import cosine, finite, flat, reversal

from difftilt.algorithms import advantages
from difftilt.algorithms.nft import NFT
from difftilt.conditions import unconditional
from difftilt.objective import Objective

F64 = torch.float64


def prepared(size=32, **settings) -> Any:
    problem, algorithm = reversal(), NFT(minibatches=1, **{"consistency": 0.0, **settings})
    algorithm.setup(problem.elsewhere, unconditional(size))
    return problem, algorithm


def experience(problem, size=32, seed=0):
    torch.manual_seed(seed)
    return problem.objective.sample(problem.elsewhere, unconditional(size))


def of_level(error, t):
    """The mean over the rows of the same t, by a loop."""
    return torch.stack([error[t == level].mean() for level in t.tolist()])


@pytest.mark.parametrize(
    "settings", [{"strength": 0.3}, {"strength": 1.0}, {"strength": 2.0}, {"form": "advantage"}]
)
def test_at_the_old_policy_the_gradient_is_that_of_the_weighted_regression(settings):
    """-E a_t (2 q - 1) <x_0 - y, y'> times 2 / (D mean |x_0 - y|), the mean over the level; same noise."""
    problem, algorithm = prepared(**settings)
    chains, policy = experience(problem).path, problem.elsewhere
    good = torch.rand(32, dtype=F64)
    torch.manual_seed(1)
    loss = algorithm._loss(
        policy, algorithm.old, problem.objective.reference, chains.states[-1], chains.cond, good
    )
    torch.manual_seed(1)
    x_0, t = chains.states[-1], torch.randint(1, 5, (32,))
    clean = policy.clean(algorithm.old.corrupt(x_0, t), t, chains.cond)
    error = (x_0 - clean).detach()
    toward = (
        policy.signal(t) * (2 * good - 1) * (error * clean).mean(1) * 2 / of_level(error.abs().mean(1), t)
    )
    found, expected = flat(loss, policy), flat(-toward.mean(), policy)
    assert expected.norm() > 0.05
    torch.testing.assert_close(found, expected)


def test_a_good_example_pulls_and_a_bad_one_pushes():
    problem, algorithm = prepared()
    chains, policy = experience(problem).path, problem.elsewhere
    found = []
    for q in (1.0, 0.0, 0.5):
        torch.manual_seed(1)
        good = torch.full((32,), q, dtype=F64)
        loss = algorithm._loss(
            policy, algorithm.old, problem.objective.reference, chains.states[-1], chains.cond, good
        )
        found.append(flat(loss, policy))
    torch.testing.assert_close(found[0], -found[1])
    assert found[2].norm() < 1e-12 < found[0].norm()


def test_consistency_pulls_to_the_samples_however_good():
    """It is the denoising loss of the policy's own samples, each level divided by its mean error."""
    problem, algorithm = prepared(consistency=0.7)
    chains, policy = experience(problem).path, problem.elsewhere
    torch.manual_seed(1)
    good = torch.full((32,), 0.5, dtype=F64)
    loss = algorithm._loss(
        policy, algorithm.old, problem.objective.reference, chains.states[-1], chains.cond, good
    )
    torch.manual_seed(1)
    x_0, t = chains.states[-1], torch.randint(1, 5, (32,))
    clean = policy.clean(algorithm.old.corrupt(x_0, t), t, chains.cond)
    error = clean - x_0
    scale = of_level(error.detach().abs().mean(1), t)
    expected = 0.7 * (policy.signal(t) * (error**2).mean(1) / scale).mean()
    torch.testing.assert_close(flat(loss, policy), flat(expected, policy))


def test_the_probability_of_being_good_is_what_a_loop_says():
    problem, algorithm = prepared(clip=1.5)
    seen = experience(problem)
    gains = (seen.reward - 0.5 * seen.log_ratio.sum(0)).tolist()
    mean = sum(gains) / len(gains)
    spread = (sum((g - mean) ** 2 for g in gains) / len(gains)) ** 0.5 + advantages.EPS
    expected = [0.5 + min(max((g - mean) / (1.5 * spread), -1), 1) / 2 for g in gains]
    found = algorithm._good(seen)
    assert found.tolist() == pytest.approx(expected)
    assert found.min() == 0 and found.max() == 1


def test_without_the_kl_alpha_has_no_part():
    found = {}
    for count_kl in (True, False):
        for alpha in (0.5, 5.0):
            problem, algorithm = prepared(count_kl=count_kl)
            objective = Objective(problem.objective.reward, problem.objective.reference, alpha)
            torch.manual_seed(0)
            found[count_kl, alpha] = algorithm._good(objective.sample(problem.elsewhere, unconditional(32)))
    assert torch.equal(found[False, 0.5], found[False, 5.0])
    assert not torch.allclose(found[True, 0.5], found[True, 5.0], atol=0.01)


def test_at_the_optimum_nothing_is_better_than_anything_else():
    """r - alpha log(p / p_pre) is alpha log Z on every chain, nearly: the variances are not tuned."""
    problem = reversal()
    torch.manual_seed(0)
    gains = {}
    for name, policy in (("best", problem.best), ("start", problem.start)):
        seen = problem.objective.sample(policy, unconditional(2000))
        gains[name] = (seen.reward - 0.5 * seen.log_ratio.sum(0)).std().item()
    assert gains["best"] < 0.1 * gains["start"]


def test_each_context_is_compared_with_itself():
    problem, algorithm = prepared()
    cond = {"label": torch.arange(32) % 2}
    objective = Objective(
        lambda x, c: x[:, 0] + 100.0 * torch.as_tensor(c["label"]), problem.objective.reference, 0.5
    )
    torch.manual_seed(0)
    shifted = algorithm._good(objective.sample(problem.elsewhere, cond))
    plain = Objective(lambda x, c: x[:, 0], problem.objective.reference, 0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(shifted, algorithm._good(plain.sample(problem.elsewhere, cond)))


@pytest.mark.parametrize("decay", [0.0, 0.8])
def test_the_old_policy_follows(decay):
    problem, algorithm = prepared(decay=decay)
    policy = problem.elsewhere
    before = [p.clone() for p in algorithm.old.parameters()]
    assert not any(p.requires_grad for p in algorithm.old.parameters())
    for _ in algorithm.losses(policy, problem.objective, unconditional(32)):
        with torch.no_grad():
            for p in policy.parameters():
                p += 0.1
    moved = 0
    for old, mean, now in zip(before, algorithm.old.parameters(), policy.parameters(), strict=True):
        torch.testing.assert_close(mean, decay * old + (1 - decay) * now)
        moved += (mean - old).abs().sum().item()
    assert moved > 0


def test_the_samples_are_those_of_the_old_policy():
    problem, algorithm = prepared()
    with torch.no_grad():
        for p in problem.elsewhere.parameters():
            p += 10
    torch.manual_seed(0)
    loss = next(algorithm.losses(problem.elsewhere, problem.objective, unconditional(32)))
    torch.manual_seed(0)
    seen = problem.objective.sample(algorithm.old, unconditional(32))
    assert loss.stats["reward"] == seen.reward.mean()


def test_the_penalty_pulls_to_the_reference():
    problem, plain = prepared()
    _, held = prepared(penalty=1e4)
    chains = experience(problem).path
    good, policy = torch.full((32,), 0.5, dtype=F64), problem.elsewhere
    away = []
    for algorithm in (plain, held):
        torch.manual_seed(1)
        loss = algorithm._loss(
            policy, algorithm.old, problem.objective.reference, chains.states[-1], chains.cond, good
        )
        away.append(flat(loss, policy))
    assert away[0].norm() < 1e-12
    towards = torch.cat([-p.detach().flatten() for p in policy.parameters() if p.requires_grad])
    assert cosine(-away[1], towards) > 0.2  # the reference's weights are zero; levels weigh by their signal


def test_a_chain_that_cannot_noise_is_refused():
    problem = finite()
    with pytest.raises(ValueError, match="a TabularPolicy is not; use ppo"):
        NFT().setup(problem.start, unconditional(8))


def test_without_setup_it_says_so():
    problem = reversal()
    with pytest.raises(ValueError, match="call setup"):
        next(NFT().losses(problem.start, problem.objective, unconditional(8)))
