"""What every algorithm promises. A new file in `difftilt.algorithms` is examined without being named here."""

import importlib
import pkgutil

import pytest
import torch
from problems import PROBLEMS, cosine, flat

from difftilt import algorithms
from difftilt.guard import Guard
from difftilt.objective import Algorithm, Objective
from difftilt.policy import unconditional
from difftilt.training.fit import fit

# algorithms that cannot do every chain, and the chains that they can
CHAINS: dict[str, tuple[str, ...]] = {
    "Backprop": ("gaussian", "reversal"),  # states that carry gradients
    "AdjointMatching": ("reversal",),  # the standard deviations of `gaussian` are tuned, which it leaves
    "NFT": ("reversal",),  # noises samples again
}
REMAINS = 0.08  # at the optimum, of the gradient's length at the reference
ALIGNED = 0.98  # cosine with grad J away from the optimum
# where the expected gradient is that of another divergence from the same optimum, which also falls along it
UPHILL = {"AdjointMatching": 0.9, "RewardWeighted": 0.6, "PathConsistency": 0.6, "NFT": 0.6}
REACHED = 0.1  # share of the gap to J* that may remain after training


def found() -> list[type[Algorithm]]:
    names = [f"{algorithms.__name__}.{module.name}" for module in pkgutil.iter_modules(algorithms.__path__)]
    members = [(name, member) for name in names for member in vars(importlib.import_module(name)).values()]
    return [
        m for name, m in members if isinstance(m, type) and issubclass(m, Algorithm) and m.__module__ == name
    ]


EXAMINED = [
    pytest.param(kind, chain, id=f"{kind.__name__}-{chain}")
    for kind in found()
    for chain in CHAINS.get(kind.__name__, tuple(PROBLEMS))
]


def settle(algorithm, problem, policy, rounds=100, size=1000):
    """Trains the algorithm's own networks, and nothing else, until they know the policy's values."""
    own = [p for p in algorithm.parameters() if p.requires_grad]
    if not own:
        return
    optimizer = torch.optim.Adam(own, 0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, rounds)
    for _ in range(rounds):
        for loss in algorithm.losses(policy, problem.objective, unconditional(size)):
            gradients = torch.autograd.grad(loss.value, own, allow_unused=True)
            for p, gradient in zip(own, gradients, strict=True):
                p.grad = gradient
            optimizer.step()
        schedule.step()


def expected_gradient(kind, problem, policy, size=8000, rounds=8):
    """The mean gradient of the first loss of many rounds, all from the same policy."""
    torch.manual_seed(1)
    algorithm = kind()
    cond = unconditional(size)
    algorithm.setup(policy, cond)
    settle(algorithm, problem, policy)
    losses = [next(iter(algorithm.losses(policy, problem.objective, cond))) for _ in range(rounds)]
    return -torch.stack([flat(loss.value, policy) for loss in losses]).mean(0)


def test_every_algorithm_is_found():
    assert {"PPO", "GRPO", "NFT", "Backprop"} <= {kind.__name__ for kind in found()}


@pytest.mark.parametrize(("kind", "chain"), EXAMINED)
def test_nothing_pulls_away_from_the_optimum(kind, chain):
    problem = PROBLEMS[chain]()
    assert flat(problem.exact(problem.best), problem.best).norm() < 1e-6
    remains = expected_gradient(kind, problem, problem.best).norm()
    assert remains < REMAINS * expected_gradient(kind, problem, problem.start).norm()


@pytest.mark.parametrize(("kind", "chain"), EXAMINED)
def test_elsewhere_the_expected_step_goes_up_the_exact_gradient(kind, chain):
    problem = PROBLEMS[chain]()
    exact = flat(problem.exact(problem.elsewhere), problem.elsewhere)
    found = cosine(expected_gradient(kind, problem, problem.elsewhere), exact)
    assert found > UPHILL.get(kind.__name__, ALIGNED)


@pytest.mark.parametrize(("kind", "chain"), EXAMINED)
def test_training_closes_the_gap(kind, chain):
    problem, algorithm = PROBLEMS[chain](), kind()
    torch.manual_seed(0)
    before = problem.exact(problem.start).item()
    cond = unconditional(256)
    algorithm.setup(problem.start, cond)
    tuned = [p for p in [*problem.start.parameters(), *algorithm.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(tuned, 0.03)
    list(fit(problem.start, problem.objective, algorithm, [cond] * 25, optimizer))
    left = problem.optimum - problem.exact(problem.start).item()
    assert 0 <= left < REACHED * (problem.optimum - before)


@pytest.mark.parametrize(("kind", "chain"), EXAMINED)
def test_the_number_of_losses_does_not_depend_on_data(kind, chain):
    """Not on the reward's values, and not on how many samples were dropped."""
    problem = PROBLEMS[chain]()

    def patchy(x, c):
        kept = torch.arange(len(x)) % 3 > 0
        return torch.where(kept, 100 * torch.randn(len(x)) + nothing(x, c), torch.nan)

    def nothing(x, c):
        return 0 * x.flatten(1).sum(1)

    rewards = [problem.objective.reward, lambda x, c: nothing(x, c).float(), Guard(patchy, on_error="drop")]
    counts = set()
    for reward in rewards:
        algorithm, objective = kind(), Objective(reward, problem.objective.reference, 0.5)
        cond = unconditional(64)
        algorithm.setup(problem.start, cond)
        counts.add(len(list(algorithm.losses(problem.start, objective, cond))))
    assert len(counts) == 1
