"""What every algorithm promises. A new file in `difftilt.algorithms` is examined without being named here."""

import copy
import dataclasses
import importlib
import pkgutil
from typing import Any

import pytest
import torch
from problems import PROBLEMS, cosine, flat

from difftilt import algorithms
from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.guard import Guard
from difftilt.objective import Algorithm, Loss, Objective
from difftilt.samplers.smc import SMC
from difftilt.training.fit import fit
from difftilt.training.settings import Training

# algorithms that cannot do every chain, and the chains that they can
CHAINS: dict[str, tuple[str, ...]] = {
    "Backprop": ("gaussian", "reversal"),  # states that carry gradients
    "AdjointMatching": ("reversal",),  # the standard deviations of `gaussian` are tuned, which it leaves
    "NFT": ("reversal",),  # noises samples again
    "Distill": ("reversal",),  # its usual value expects x_0
    "LocalSearch": ("reversal",),  # noises samples again
}
# what has no default
SETTINGS: dict[str, dict[str, Any]] = {"Distill": {"sampler": SMC(particles=8)}}
REMAINS = 0.08  # at the optimum, of the gradient's length at the reference
ALIGNED = 0.98  # cosine with grad J away from the optimum
# where the expected gradient is that of another divergence from the same optimum, which also falls along it
UPHILL = {
    "AdjointMatching": 0.9,
    "RewardWeighted": 0.6,
    "PathConsistency": 0.6,
    "NFT": 0.6,
    "Distill": 0.6,
    "DPO": 0.6,
    "LocalSearch": 0.6,
}
FEW = 2000  # samples that tell a broken copy
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


def made(kind, policy, cond):
    """An algorithm with its defaults, which keeps its graphs: these chains are small."""
    quick = {"recompute": False} if "recompute" in {f.name for f in dataclasses.fields(kind)} else {}
    needed = [settings for name, settings in SETTINGS.items() if name in {m.__name__ for m in kind.__mro__}]
    algorithm = kind(**quick, **(needed[0] if needed else {}))
    algorithm.setup(policy, cond)
    return algorithm


def settle(algorithm, problem, policy, rounds=12, size=200):
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
    cond = unconditional(size)
    algorithm = made(kind, policy, cond)
    settle(algorithm, problem, policy)
    losses = [next(iter(algorithm.losses(policy, problem.objective, cond))) for _ in range(rounds)]
    return -torch.stack([flat(loss.value, policy) for loss in losses]).mean(0)


LENGTHS: dict[Any, Any] = {}  # of expected gradients at the reference, which copies are compared with, too


def rests(kind, problem, size=8000):
    """Nothing pulls away from the optimum."""
    assert flat(problem.exact(problem.best), problem.best).norm() < 1e-6
    whole = next(base for base in kind.__mro__ if base in found())
    key = whole, type(problem.start), size
    if key not in LENGTHS:
        LENGTHS[key] = expected_gradient(whole, problem, problem.start, size).norm()
    remains = expected_gradient(kind, problem, problem.best, size).norm()
    return bool(remains < REMAINS * LENGTHS[key])


def climbs(kind, problem, size=8000):
    """Elsewhere the expected step goes up the exact gradient."""
    exact = flat(problem.exact(problem.elsewhere), problem.elsewhere)
    bounds = [UPHILL[base.__name__] for base in kind.__mro__ if base.__name__ in UPHILL]
    return cosine(expected_gradient(kind, problem, problem.elsewhere, size), exact) > (bounds or [ALIGNED])[0]


def reaches(kind, problem):
    """Training closes the gap."""
    torch.manual_seed(0)
    before = problem.exact(problem.start).item()
    cond = unconditional(256)
    algorithm = made(kind, problem.start, cond)
    tuned = [p for p in [*problem.start.parameters(), *algorithm.parameters()] if p.requires_grad]
    optimizer = torch.optim.Adam(tuned, 0.03)
    list(fit(problem.start, problem.objective, algorithm, [cond] * 25, optimizer, Training(max_norm=1.0)))
    left = problem.optimum - problem.exact(problem.start).item()
    return 0 <= left < REACHED * (problem.optimum - before)


def counts(kind, problem, size=64):
    """The number of losses depends neither on the reward's values nor on how many samples were dropped."""

    def patchy(x, c):
        kept = torch.arange(len(x)) % 3 > 0
        return torch.where(kept, 100 * torch.randn(len(x)) + nothing(x, c), torch.nan)

    def nothing(x, c):
        return 0 * x.flatten(1).sum(1)

    rewards = [problem.objective.reward, lambda x, c: nothing(x, c).float(), Guard(patchy, on_error="drop")]
    found = set()
    for reward in rewards:
        objective, cond = Objective(reward, problem.objective.reference, 0.5), unconditional(size)
        algorithm = made(kind, problem.start, cond)
        found.add(len(list(algorithm.losses(problem.start, objective, cond))))
    return len(found) == 1


def test_every_algorithm_is_found():
    assert {"PPO", "GRPO", "NFT", "Backprop"} <= {kind.__name__ for kind in found()}


CONTRACTS = [rests, climbs, reaches, counts]


@pytest.mark.parametrize(("kind", "chain"), EXAMINED)
@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_every_algorithm_keeps(contract, kind, chain):
    assert contract(kind, PROBLEMS[chain]())


# Copies that are broken on purpose, which the contracts must refuse


def descending(kind):
    """The sign is wrong, but for what the algorithm's own networks learn."""

    class Descending(kind):
        def losses(self, policy, objective, cond):
            own = [p for p in self.parameters() if p.requires_grad]
            for loss in super().losses(policy, objective, cond):
                slopes = torch.autograd.grad(loss.value, own, retain_graph=True) if own else []
                learned = sum((2 * g * p).sum() for g, p in zip(slopes, own, strict=True))
                yield Loss(learned - loss.value, loss.stats)

    return Descending


def free(kind):
    """The KL costs nothing: the reference is where the policy is."""

    class Free(kind):
        def losses(self, policy, objective, cond):
            here = copy.deepcopy(policy).requires_grad_(False)
            yield from super().losses(policy, Objective(objective.reward, here, objective.alpha), cond)

    return Free


def doubled(kind):
    """The KL costs twice as much."""

    class Doubled(kind):
        def losses(self, policy, objective, cond):
            other = Objective(objective.reward, objective.reference, 2 * objective.alpha)
            yield from super().losses(policy, other, cond)

    return Doubled


def moody(kind):
    """The number of gradient steps depends on the data."""

    class Moody(kind):
        def losses(self, policy, objective, cond):
            losses = list(super().losses(policy, objective, cond))
            yield from losses if losses[0].stats["reward"].abs() > 1e-6 else losses[:1] * (len(losses) + 1)

    return Moody


@pytest.mark.parametrize("kind", found(), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("contract", "breaking"),
    [(rests, free), (rests, doubled), (climbs, descending), (counts, moody)],
    ids=lambda part: part.__name__,
)
def test_the_contract_refuses_a_broken_copy(contract, breaking, kind):
    assert not contract(breaking(kind), PROBLEMS["reversal"](), FEW)


@pytest.mark.parametrize("kind", found(), ids=lambda kind: kind.__name__)
def test_so_few_samples_do_not_refuse_what_is_right(kind):
    assert rests(kind, PROBLEMS["reversal"](), FEW)


@pytest.mark.parametrize("kind", [Backprop, PPO], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("breaking", [descending, free, doubled], ids=lambda breaking: breaking.__name__)
def test_training_refuses_a_broken_copy(breaking, kind):
    assert not reaches(breaking(kind), PROBLEMS["gaussian"]())
