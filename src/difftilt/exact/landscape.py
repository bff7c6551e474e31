"""Masked chains of short sequences, where every state can be listed: all (K + 1)^L of them, masks included.

A law of x_t is a table with one axis per position. A step splits by the set of positions that it unmasks:
for each set, the states that are masked there are multiplied by the probabilities of their tokens.
"""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.guard import Guard
from difftilt.objective import Objective
from difftilt.policy import Policy, repeat, unconditional
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Cond, PerSample, Points, Scalar, State, StateValues, Step
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

    values: StateValues
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
    for t, guess, cost in _steps(policy, reference, cond, range(policy.steps, 0, -1)):
        kl = kl + law.flatten() @ cost
        law = _forward(policy, law, guess, t)
    law = _complete(policy, law)
    reward = law @ scores
    return Evaluation(reward, kl, reward - objective.alpha * kl, law)


@torch.no_grad()
def solve(objective: Objective, scores: Points | None = None, cond: Cond | None = None) -> Solution:
    """The optimum, and the soft values v_t = alpha log E_pre[exp(r / alpha) | x_t], backwards in t."""
    reference, alpha = _masked(objective.reference), objective.alpha
    scores = score(objective, reference, cond) if scores is None else scores
    top = scores.max()
    tilt = ((scores - top) / alpha).exp()
    mean = _start(reference) * 0
    _complete_view(reference, mean).copy_(tilt.view(_sizes(reference)))
    means = [mean]
    for t, guess, _ in _steps(reference, reference, cond, range(1, reference.steps + 1)):
        means.append(_backward(reference, means[-1], guess, t))
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


def _steps(
    policy: MaskedPolicy, reference: MaskedPolicy, cond: Cond | None, order: Iterable[int]
) -> Iterator[tuple[int, Tensor, Points]]:
    """Of every state, at each t: probabilities of each position's token, and the KL of the step, in nats."""
    every = torch.cartesian_prod(*[torch.arange(policy.categories + 1)] * len(policy.start))
    every = every.view(-1, len(policy.start))
    fixed = policy.start != policy.categories
    kept = (every == policy.start)[:, fixed].all(1)
    masks = (every == policy.categories).sum(1)
    found = None
    for t in order:
        if policy.unmasking == "bernoulli":
            time = torch.where(kept & (masks > 0), t, 0)
            found = _tables(policy, reference, every, time, cond)
        elif found is None:  # the number of masks tells t, so one pass will do for all
            step = torch.zeros(len(policy.start) + 1, dtype=torch.long)
            step[policy.left[1:]] = torch.arange(1, policy.steps + 1)
            found = _tables(policy, reference, every, torch.where(kept, step[masks], 0), cond)
        yield t, *found


def _tables(
    policy: MaskedPolicy, reference: MaskedPolicy, every: State, time: Step, cond: Cond | None
) -> tuple[Tensor, Points]:
    """Those of the states whose t is not 0."""
    length, count = every.shape[1], policy.categories
    guess = torch.zeros(len(every), length, count, dtype=torch.float64)
    cost = torch.zeros(len(every), dtype=torch.float64)
    for rows in time.nonzero()[:, 0].split(ROWS):
        x, t, given = every[rows], time[rows], _cond(cond, len(rows))
        clean = _normal(policy.clean(x, t, given))
        guess[rows] = clean
        if policy is not reference:
            base = _normal(reference.clean(x, t, given))
            cost[rows] = policy.reveal(clean, x, t).kl(reference.reveal(base, x, t))
    return guess.view(*(count + 1,) * length, length, count), cost


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
    every = torch.zeros_like(mean)
    for before, drawn, chance, factors in _moves(policy, guess, t):
        part = mean[drawn]
        for factor in factors:
            part = part * factor
        summed = [axis for axis, cut in enumerate(before) if cut != slice(None)]
        every[before] += chance * (part.sum(summed, keepdim=True) if summed else part)
    return every


def _moves(
    policy: MaskedPolicy, guess: Tensor, t: int
) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...], Tensor | float, list[Tensor]]]:
    """Every set of positions that a step may unmask: where they are masked, where they hold tokens, the
    set's probability, and the probabilities of the tokens.
    """
    length, count = len(policy.start), policy.categories
    free = [i for i in range(length) if policy.start[i] == count]
    drawn_now = int(policy.left[t] - policy.left[t - 1])
    sizes = [drawn_now] if policy.unmasking == "positions" else range(len(free) + 1)
    stay = (1 - 1 / t) ** torch.arange(length + 1, dtype=torch.float64)
    masks = torch.stack(torch.meshgrid(*[torch.arange(count + 1) == count] * length, indexing="ij")).sum(0)
    for size in sizes:
        for positions in itertools.combinations(free, size):
            before = tuple(slice(count, None) if i in positions else slice(None) for i in range(length))
            drawn = tuple(slice(count) if i in positions else slice(None) for i in range(length))
            factors = [guess[(*before, i)].movedim(-1, i).squeeze(i + 1) for i in positions]
            if policy.unmasking == "positions":
                chance = 1 / math.comb(int(policy.left[t]), size)
            else:
                chance = (1 / t) ** size * stay[masks[before] - size]
            yield before, drawn, chance, factors


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
