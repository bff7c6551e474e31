"""Exact distributions of short sequences, against paths listed one by one and against samples."""

import itertools
import math

import pytest
import torch
from torch import nn

from difftilt.conditions import unconditional
from difftilt.exact import landscape
from difftilt.exact.tabular import random_chain
from difftilt.objective import Objective
from difftilt.processes.masked import MaskedPolicy

CATEGORIES, LENGTH, ALPHA = 2, 3, 0.4
KINDS = [
    {},
    {"steps": 2},
    {"steps": 2, "unmasking": "bernoulli"},
    {"start": torch.tensor([2, 1, 2])},
]
IDS = ["one", "several", "bernoulli", "frozen"]


class Table(nn.Module):
    """A row of logits per state and t."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)  # (T + 1, (K + 1)^L, L, K)

    def forward(self, x, t, cond):
        digits = x.shape[2] ** torch.arange(x.shape[1]).flip(0)
        return self.logits[t, (x.argmax(-1) * digits).sum(1)]


def chain(seed, categories=CATEGORIES, length=LENGTH, **settings) -> MaskedPolicy:
    torch.manual_seed(seed)
    logits = torch.randn(length + 1, (categories + 1) ** length, length, categories)
    return MaskedPolicy(Table(logits), categories, length, **settings).requires_grad_(False)


def reward(x, cond):
    return (x.double() @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)).sin()


def problem(**settings) -> tuple[Objective, MaskedPolicy]:
    return Objective(reward, chain(0, **settings), ALPHA), chain(1, **settings)


def listed(policy, reference):
    """The distribution of x_0 and the path KL: every path, weighed by the probabilities of its steps."""
    law, kl = {tuple(policy.start.tolist()): 1.0}, 0.0
    every = torch.cartesian_prod(*[torch.arange(policy.categories + 1)] * len(policy.start))
    for t in range(policy.steps, 0, -1):
        after: dict[tuple[int, ...], float] = {}
        for state, mass in law.items():
            count = len(every)
            x, time = torch.tensor([state]).expand(count, -1), torch.full((count,), t)
            step, base = (p(x, time, unconditional(count)) for p in (policy, reference))
            log_p, log_q = step.log_prob(every), base.log_prob(every)
            for k in (log_p > -math.inf).nonzero()[:, 0].tolist():
                p = mass * math.exp(log_p[k])
                kl += p * (log_p[k] - log_q[k]).item()
                key = tuple(every[k].tolist())
                after[key] = after.get(key, 0.0) + p
        law = after
    return law, kl


@pytest.mark.parametrize("settings", KINDS, ids=IDS)
def test_the_law_and_the_kl_are_those_of_all_paths(settings):
    objective, policy = problem(**settings)
    found = landscape.evaluate(objective, policy)
    law, kl = listed(policy, objective.reference)
    expected = [law.get(x, 0.0) for x in itertools.product(range(CATEGORIES), repeat=LENGTH)]
    assert found.law.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.law.sum().item() == pytest.approx(1, abs=1e-10)
    assert found.kl.item() == pytest.approx(kl, rel=1e-5)
    assert found.objective.item() == pytest.approx(found.reward.item() - ALPHA * kl, rel=1e-5)


@pytest.mark.parametrize("settings", KINDS, ids=IDS)
def test_samples_agree(settings):
    objective, policy = problem(**settings)
    found = landscape.evaluate(objective, policy)
    stats = objective.sample(policy, unconditional(20_000)).stats()
    for name in ("reward", "kl", "objective"):
        key = "kl_nats" if name == "kl" else name
        assert abs(stats[key] - getattr(found, name)) < 4 * stats[f"{key}_se"] + 1e-6


@pytest.mark.parametrize("settings", KINDS, ids=IDS)
def test_the_optimum_is_the_tilted_law(settings):
    objective, _ = problem(**settings)
    base = landscape.evaluate(objective, objective.reference)
    solved = landscape.solve(objective)
    tilted = base.law * (landscape.score(objective, objective.reference) / ALPHA).exp()
    assert base.kl.item() == 0
    torch.testing.assert_close(solved.law, tilted / tilted.sum())
    assert solved.optimum.item() == pytest.approx(ALPHA * tilted.sum().log().item(), rel=1e-9)
    assert solved.kl.item() == pytest.approx(landscape.kl(solved.law, base.law).item(), rel=1e-6)
    assert solved.reward - ALPHA * solved.kl == pytest.approx(solved.optimum.item(), rel=1e-9)


@pytest.mark.parametrize("settings", KINDS, ids=IDS)
def test_soft_values_solve_the_soft_bellman_equation(settings):
    """v_t(x) = alpha log E_pre[exp(v_{t-1}(x_{t-1}) / alpha) | x], at every state that x_t can be."""
    objective, _ = problem(**settings)
    policy, solved = objective.reference, landscape.solve(objective)
    assert isinstance(policy, MaskedPolicy)
    every = torch.cartesian_prod(*[torch.arange(CATEGORIES + 1)] * LENGTH)
    states, checked = {tuple(policy.start.tolist())}, 0
    for t in range(policy.steps, 0, -1):
        after = set()
        for state in states:
            x, count = torch.tensor([state]), len(every)
            law = policy(x.expand(count, -1), torch.full((count,), t), unconditional(count))
            log_p = law.log_prob(every)
            v = solved.value(every, torch.full((count,), t - 1), {})
            exact = ALPHA * torch.where(log_p > -math.inf, log_p + v / ALPHA, -math.inf).logsumexp(0)
            assert solved.value(x, torch.tensor([t]), {}).item() == pytest.approx(exact.item(), abs=1e-6)
            after |= {tuple(y) for y in every[log_p > -math.inf].tolist()}
            checked += 1
        states = after
    assert checked > 3


def conditionals(law):
    """The chain whose guesses are those of one joint distribution of three tokens, in whatever order."""
    logits = torch.zeros(LENGTH + 1, (CATEGORIES + 1) ** LENGTH, LENGTH, CATEGORIES, dtype=torch.float64)
    for k, x in enumerate(itertools.product(range(CATEGORIES + 1), repeat=LENGTH)):
        seen = law[tuple(slice(None) if token == CATEGORIES else slice(token, token + 1) for token in x)]
        for i in range(LENGTH):
            if x[i] == CATEGORIES:
                others = [j for j in range(LENGTH) if j != i]
                logits[:, k, i] = (seen.sum(others) / seen.sum()).log()
    return MaskedPolicy(Table(logits), CATEGORIES, LENGTH)


def test_one_at_a_time_the_optimum_is_a_masked_policy():
    """If the guesses are those of one distribution, whatever the order, p* keeps the distribution of the
    order: the guesses of p_r reach J*. Guesses that contradict each other would make p* prefer some orders.
    """
    torch.manual_seed(0)
    law = torch.randn(8, dtype=torch.float64).softmax(0).view(2, 2, 2)
    objective = Objective(reward, conditionals(law).requires_grad_(False), ALPHA)
    solved = landscape.solve(objective)
    found = landscape.evaluate(objective, conditionals(solved.law.view(2, 2, 2)))
    assert found.objective.item() == pytest.approx(solved.optimum.item(), abs=1e-6)
    torch.testing.assert_close(found.law, solved.law, rtol=0, atol=1e-6)
    contradicting, _ = problem()
    tilted = landscape.solve(contradicting)
    best = landscape.evaluate(contradicting, conditionals(tilted.law.view(2, 2, 2)))
    torch.testing.assert_close(best.law, tilted.law, rtol=0, atol=1e-6)
    assert best.objective < tilted.optimum - 0.05


def by_bellman(reference, scores):
    """max J of masked policies, state by state."""
    count, base = reference.categories, reference.categories + 1
    every = torch.cartesian_prod(*[torch.arange(base)] * LENGTH)
    places = base ** torch.arange(LENGTH).flip(0)
    masks = (every == count).sum(1)
    probs = reference.clean(every, masks, unconditional(len(every))).double()
    value = torch.full((len(every),), -math.inf, dtype=torch.float64)
    value[masks == 0] = scores
    for row in masks.argsort(stable=True)[(masks == 0).sum() :]:
        hidden = (every[row] == count).nonzero()
        after = value[row - places[hidden] * (count - torch.arange(count))]
        value[row] = ALPHA * (probs[row, hidden[:, 0]].log() + after / ALPHA).logsumexp(1).mean()
    return value[-1].item()


def test_what_masked_policies_can_reach():
    """A random table contradicts itself from order to order, and tilting cannot change the order."""
    objective, _ = problem()
    best, solved = landscape.reachable(objective).item(), landscape.solve(objective).optimum.item()
    assert best == pytest.approx(
        by_bellman(objective.reference, landscape.score(objective, objective.reference))
    )
    assert best < solved - 0.01
    law = torch.randn(8, dtype=torch.float64).softmax(0).view(2, 2, 2)
    consistent = Objective(reward, conditionals(law).requires_grad_(False), ALPHA)
    solved = landscape.solve(consistent).optimum.item()
    assert landscape.reachable(consistent).item() == pytest.approx(solved, abs=1e-6)


def test_the_best_independent_draws_are_not_claimed():
    objective, _ = problem(steps=2)
    with pytest.raises(ValueError, match="one position per step, but got 2 steps with unmasking 'positions'"):
        landscape.reachable(objective)


XOR = [
    ("positions", 1, 1.0),
    ("positions", 2, 0.0),
    *[("bernoulli", steps, 1 / steps) for steps in (1, 2, 8, 64)],
]


@pytest.mark.parametrize(("unmasking", "steps", "together"), XOR)
def test_two_tokens_in_one_step_cannot_know_of_each_other(unmasking, steps, together):
    """XOR at alpha 0.25 from a uniform chain, where the first token is a fair coin and the second knows it:
    what is left is the share of paths that draw both at once, times the distance of the uniform distribution
    from p_r.
    """
    logits, settings = torch.zeros(steps + 1, 9, 2, 2), {"steps": steps, "unmasking": unmasking}
    flat = MaskedPolicy(Table(logits), 2, 2, **settings).requires_grad_(False)
    objective = Objective(lambda x, c: (x[:, 0] != x[:, 1]).double(), flat, 0.25)
    told = logits.clone()
    for token in (0, 1):  # states (token, mask) and (mask, token)
        told[:, 3 * token + 2, 1, 1 - token] = told[:, 6 + token, 0, 1 - token] = 1 / 0.25
    away = landscape.evaluate(objective, MaskedPolicy(Table(told), 2, 2, **settings)).law
    away = away - landscape.solve(objective).law
    expected = together * (1 / (1 + math.exp(-1 / 0.25)) - 0.5)
    assert expected == pytest.approx(0.48 * together, abs=0.005)
    assert away.abs().sum().item() / 2 == pytest.approx(expected, abs=1e-6)


class Rough(nn.Module):
    """Logits in float32, of which no two states have the same."""

    def __init__(self, seed):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(30, 24, generator=torch.Generator().manual_seed(seed)))

    def forward(self, x, t, cond):
        return (x.flatten(1) @ self.weight).sin().view(-1, 6, 4) * 3


@pytest.mark.parametrize(
    "settings",
    [{}, {"steps": 2}, {"steps": 3, "unmasking": "bernoulli"}],
    ids=["one", "several", "bernoulli"],
)
def test_probabilities_of_all_sequences_sum_to_one(settings, monkeypatch):
    """4,096 of them, by way of 15,625 states; in the network's own precision they would not."""
    policy, reference = (MaskedPolicy(Rough(seed), 4, 6, **settings).requires_grad_(False) for seed in (0, 1))
    objective = Objective(lambda x, c: x.double().sum(1).sin(), reference, 0.1)
    assert landscape.evaluate(objective, policy).law.sum().item() == pytest.approx(1, abs=1e-10)
    monkeypatch.setattr(landscape, "_normal", torch.Tensor.double)
    assert landscape.evaluate(objective, policy).law.sum().item() != pytest.approx(1, abs=1e-9)


def test_divergence_counts_what_the_other_law_lacks():
    law, other = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.25, 0.5, 0.25]).double()
    assert landscape.kl(law, other).item() == pytest.approx(0.5 * math.log(2))
    assert landscape.kl(other, law).item() == math.inf


def test_another_chain_is_refused():
    tables = random_chain(3, 2)
    with pytest.raises(ValueError, match="needs a MaskedPolicy, but got TabularPolicy"):
        landscape.evaluate(Objective(reward, tables, 1.0), tables)
