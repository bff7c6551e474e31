"""Masked chains of short sequences, where every state can be listed: all (K + 1)^L of them, masks included.

A law of x_t is a table with one axis per position. A step splits by the set of positions that it unmasks:
for each set, the states that are masked there are multiplied by the probabilities of their tokens.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.policy import Policy, repeat, unconditional
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Cond, PerSample, Points, Scalar, State, Step, Values
from difftilt.transition import tokens

ROWS = 2**15  # states that the network sees at a time


@dataclass(frozen=True)
class Evaluation:
    """What a policy earns and costs, exactly.

    Args:
        reward: E[r(x_0)].
        kl: KL(policy || reference) of whole chains, in nats.
        objective: J = reward - alpha kl.
        law: Probability of every sequence under x_0, the last position varying fastest.
    """

    reward: Scalar
    kl: Scalar
    objective: Scalar
    law: Points


@dataclass(frozen=True)
class Solution:
    """The optimum over all policies.

    Args:
        values: v_t of every state with its masks, for t = 0, ..., T; -inf where x_t never is.
        optimum: max J = alpha log Z.
        reward: E[r] under `law`.
        kl: KL of the optimum from the reference, in nats.
        law: p_r(x_0) = p_pre exp(r / alpha) / Z, of every sequence.
        categories: K.
    """

    values: Values
    optimum: Scalar
    reward: Scalar
    kl: Scalar
    law: Points
    categories: int

    def value(self, x: State, t: Step, cond: Cond) -> PerSample:
        """v_t(x): a soft value that samplers and algorithms can be given."""
        digits = (self.categories + 1) ** torch.arange(x.shape[1]).flip(0)
        return self.values[t, (tokens(x) * digits).sum(1)]


@torch.no_grad()
def evaluate(
    objective: Objective, policy: Policy, scores: Points | None = None, cond: Cond | None = None
) -> Evaluation:
    """Exact reward, KL and law of x_0 of a masked policy, given one condition.

    Args:
        scores: The reward of every sequence, if it is known; else the reward is asked.
    """
    policy, reference = _masked(policy), _masked(objective.reference)
    scores = score(objective, policy, cond) if scores is None else scores
    law, kl = _start(policy), torch.zeros((), dtype=torch.float64)
    for t in range(policy.steps, 0, -1):
        guess, cost = _step(policy, reference, t, cond)
        kl = kl + law.flatten() @ cost
        law = _forward(policy, law, guess, t)
    law = _complete(policy, law)
    reward = law @ scores
    return Evaluation(reward, kl, reward - objective.alpha * kl, law)


@torch.no_grad()
def solve(objective: Objective, scores: Points | None = None, cond: Cond | None = None) -> Solution:
    """The optimum, and soft values v_t = alpha log E_pre[exp(r / alpha) | x_t], backwards through the chain."""
    reference, alpha = _masked(objective.reference), objective.alpha
    scores = score(objective, reference, cond) if scores is None else scores
    top = scores.max()
    tilt = ((scores - top) / alpha).exp()
    mean = _start(reference) * 0
    _complete_view(reference, mean).copy_(tilt.view(_sizes(reference)))
    means = [mean]
    for t in range(1, reference.steps + 1):
        means.append(_backward(reference, means[-1], _step(reference, reference, t, cond)[0], t))
    law = evaluate(objective, reference, scores, cond).law * tilt
    law = law / law.sum()
    optimum = top + alpha * (means[-1] * _start(reference)).sum().log()
    values = top + alpha * torch.stack([mean.flatten() for mean in means]).log()
    reward = law @ scores
    return Solution(values, optimum, reward, (reward - optimum) / alpha, law, reference.categories)


def score(objective: Objective, policy: Policy, cond: Cond | None = None) -> Points:
    """The reward of every sequence, without adding to the count of reward calls."""
    chain = _masked(policy)
    every = torch.cartesian_prod(*[torch.arange(chain.categories)] * len(chain.start)).view(
        -1, len(chain.start)
    )
    guard = Guard(objective.reward.reward, objective.reward.name)
    return guard(chain.decode(every), _cond(cond, len(every))).double()


def kl(law: Points, other: Points) -> Scalar:
    """KL(law || other) in nats, of two laws on one set."""
    return torch.where(law > 0, law * (law.clamp(min=1e-300) / other).log(), 0).sum()


def _step(policy: MaskedPolicy, reference: MaskedPolicy, t: int, cond: Cond | None) -> tuple[Tensor, Points]:
    """Of every state of x_t: probabilities of each position's token, and the KL of the step, in nats."""
    length, count = len(policy.start), policy.categories
    every = torch.cartesian_prod(*[torch.arange(count + 1)] * length).view(-1, length)
    guess = torch.zeros(len(every), length, count, dtype=torch.float64)
    cost = torch.zeros(len(every), dtype=torch.float64)
    for rows in _possible(policy, every, t).split(ROWS):
        x, time, given = every[rows], torch.full((len(rows),), t), _cond(cond, len(rows))
        clean, base = (_normal(chain.clean(x, time, given)) for chain in (policy, reference))
        guess[rows], cost[rows] = clean, policy.reveal(clean, x, time).kl(reference.reveal(base, x, time))
    return guess.view(*(count + 1,) * length, length, count), cost


def _possible(policy: MaskedPolicy, every: State, t: int) -> Tensor:
    """The states that x_t can be and that have masks."""
    masked = every == policy.categories
    fixed = policy.start != policy.categories
    kept = (every == policy.start)[:, fixed].all(1)
    count = masked.sum(1)
    if policy.unmasking == "positions":
        return (kept & (count == policy.left[t])).nonzero()[:, 0]
    return (kept & (count > 0)).nonzero()[:, 0]


def _forward(policy: MaskedPolicy, law: Tensor, guess: Tensor, t: int) -> Tensor:
    """The law of x_{t-1}."""
    after = torch.zeros_like(law)
    for before, drawn, chance, factors in _moves(policy, guess, t):
        part = law[before] * chance
        for factor in factors:
            part = part * factor
        after[drawn] += part
    return after


def _backward(policy: MaskedPolicy, mean: Tensor, guess: Tensor, t: int) -> Tensor:
    """E[f(x_{t-1}) | x_t] of every x_t: the transpose of `_forward`."""
    before_all = torch.zeros_like(mean)
    for before, drawn, chance, factors in _moves(policy, guess, t):
        part = mean[drawn]
        for factor in factors:
            part = part * factor
        summed = [axis for axis, cut in enumerate(before) if cut != slice(None)]
        before_all[before] += chance * (part.sum(summed, keepdim=True) if summed else part)
    return before_all


def _moves(
    policy: MaskedPolicy, guess: Tensor, t: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], Tensor | float, list[Tensor]]]:
    """Every set of positions that a step may unmask: where they are masked, where they hold tokens, the
    set's probability, and the probabilities of the tokens."""
    length, count = len(policy.start), policy.categories
    free = [i for i in range(length) if policy.start[i] == count]
    drawn_now = int(policy.left[t] - policy.left[t - 1])
    sizes = [drawn_now] if policy.unmasking == "positions" else range(len(free) + 1)
    for size in sizes:
        for positions in itertools.combinations(free, size):
            before = tuple(slice(count, None) if i in positions else slice(None) for i in range(length))
            drawn = tuple(slice(count) if i in positions else slice(None) for i in range(length))
            factors = [guess[(*before, i)].movedim(-1, i).squeeze(i + 1) for i in positions]
            if policy.unmasking == "positions":
                chance = 1 / math.comb(int(policy.left[t]), size)
            else:
                chance = _bernoulli(policy, t, size)[before]
            yield before, drawn, chance, factors


def _bernoulli(policy: MaskedPolicy, t: int, size: int) -> Tensor:
    """Probability that of a state's masks exactly `size` given ones are unmasked."""
    length, count = len(policy.start), policy.categories
    masks = torch.zeros((count + 1,) * length, dtype=torch.float64)
    for i in range(length):
        masks.select(i, count).add_(1)
    return (1 / t) ** size * (1 - 1 / t) ** (masks - size).clamp(min=0)


def _start(policy: MaskedPolicy) -> Tensor:
    law = torch.zeros((policy.categories + 1,) * len(policy.start), dtype=torch.float64)
    law[tuple(policy.start.tolist())] = 1
    return law


def _complete(policy: MaskedPolicy, table: Tensor) -> Points:
    return _complete_view(policy, table).flatten()


def _complete_view(policy: MaskedPolicy, table: Tensor) -> Tensor:
    """The part of a table whose states have no mask."""
    return table[(slice(policy.categories),) * len(policy.start)]


def _sizes(policy: MaskedPolicy) -> tuple[int, ...]:
    return (policy.categories,) * len(policy.start)


def _normal(probs: Tensor) -> Tensor:
    return probs.double() / probs.double().sum(-1, keepdim=True)


def _cond(cond: Cond | None, count: int) -> Cond:
    return repeat(unconditional(1) if cond is None else cond, count)


def _masked(policy: Policy) -> MaskedPolicy:
    if not isinstance(policy, MaskedPolicy):
        raise ValueError(f"exact.landscape needs a MaskedPolicy, but {type(policy).__name__} came")
    return policy
