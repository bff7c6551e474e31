"""Masked chains of short sequences, where every state can be listed: all (K + 1)^L of them, masks included.

A distribution of x_t is a table with one axis per position. A step splits by the set of positions that it
unmasks: for each set, the states that are masked there are multiplied by the probabilities of their tokens.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from difftilt.data.vocabulary import all_sequences, place_values
from difftilt.exact import result
from difftilt.objective import Objective
from difftilt.policy import Policy
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Cond, PerSample, Points, Scalar, State, StateValues, Step
from difftilt.transition import Categorical, tokens

ROWS = 2**13  # states that the network sees at a time: what is made of them stays in the cache


@dataclass(frozen=True)
class Solution(result.Tilted):
    """The optimum over all policies.

    Args:
        values: v_t of every state with its masks, for t = 0, ..., T; -inf where x_t never is.
        categories: K.
    """

    values: StateValues
    categories: int

    def value(self, x: State, t: Step, cond: Cond) -> PerSample:
        """v_t(x): a soft value that samplers and algorithms can be given."""
        return self.values[t, (tokens(x) * place_values(self.categories + 1, x.shape[1])).sum(1)]


@torch.no_grad()
def evaluate(
    objective: Objective, policy: Policy, scores: Points | None = None, cond: Cond | None = None
) -> result.TableEvaluation:
    """Exact reward, KL and distribution of x_0 of a masked policy, given one condition.

    Args:
        scores: The reward of every sequence, if it is known; else the reward is asked.
    """
    policy, reference = _masked(policy), _masked(objective.reference)
    scores = score(objective, policy, cond) if scores is None else scores
    law, kl = _end(policy, _steps(policy, reference, cond, range(policy.steps, 0, -1)))
    return result.TableEvaluation(law @ scores, kl, objective.alpha, law)


@torch.no_grad()
def solve(objective: Objective, scores: Points | None = None, cond: Cond | None = None) -> Solution:
    """The optimum, and the soft values v_t = alpha log E_pre[exp(r / alpha) | x_t], backwards in t."""
    reference, alpha = _masked(objective.reference), objective.alpha
    scores = score(objective, reference, cond) if scores is None else scores
    top = scores.max()
    tilt = ((scores - top) / alpha).exp()
    length = len(reference.start)
    means = [F.pad(tilt.view((reference.categories,) * length), (0, 1) * length)]  # 0 where x_0 has a mask
    tables = _steps(reference, reference, cond, range(1, reference.steps + 1))
    if reference.unmasking == "positions":
        tables = list(tables)  # T times the same: the network runs once
    for t, guess, _ in tables:
        means.append(_backward(reference, means[-1], guess, t))
    back = range(reference.steps, 0, -1)
    again = tables[::-1] if isinstance(tables, list) else _steps(reference, reference, cond, back)
    law = _end(reference, again)[0] * tilt
    law = law / law.sum()
    optimum = top + alpha * (means[-1] * _start(reference)).sum().log()
    values = top + alpha * torch.stack([mean.flatten() for mean in means]).log()
    reward = law @ scores
    return Solution(optimum, reward, (reward - optimum) / alpha, law, values, reference.categories)


@torch.no_grad()
def reachable(objective: Objective, scores: Points | None = None, cond: Cond | None = None) -> Scalar:
    """max J over masked policies, which draw the positions in random order as the reference does.

    It is below `solve(...).optimum` where the reference's guesses contradict each other, so that the order
    tells something about x_0: those of a network do a little, those under a constraint more.

    Raises:
        ValueError: If a step draws several tokens; the best independent draws have no closed form.
    """
    reference, alpha = _masked(objective.reference), objective.alpha
    if reference.unmasking != "positions" or reference.left.diff().ne(1).any():
        raise ValueError(
            f"the best masked policy is known for one position per step, but got {reference.steps} steps with"
            f" unmasking '{reference.unmasking}'; leave both at their defaults"
        )
    scores = score(objective, reference, cond) if scores is None else scores
    length = len(reference.start)
    soft = scores.view((reference.categories,) * length) / alpha
    soft = F.pad(soft, (0, 1) * length, value=-torch.inf)
    for t, guess, _ in _steps(reference, reference, cond, range(1, reference.steps + 1)):
        soft = _backward(reference, soft.exp(), guess, t, torch.log)
    return alpha * soft[tuple(reference.start.tolist())]


def score(objective: Objective, policy: Policy, cond: Cond | None = None) -> Points:
    """The reward of every sequence, without adding to the count of reward calls."""
    chain = _masked(policy)
    return result.score(objective, chain, all_sequences(chain.categories, len(chain.start)), cond)


def kl(law: Points, other: Points) -> Scalar:
    """KL(distribution || other) in nats, of two distributions on one set."""
    return Categorical(law[None]).kl(Categorical(other[None]))[0]


def _steps(
    policy: MaskedPolicy, reference: MaskedPolicy, cond: Cond | None, order: Iterable[int]
) -> Iterator[tuple[int, Tensor, Points]]:
    """Of every state, at each t: probabilities of each position's token, and the KL of the step, in nats."""
    every = all_sequences(policy.categories + 1, len(policy.start))
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
        x, t, c = every[rows], time[rows], result.given(cond, len(rows))
        clean = _normal(policy.clean(x, t, c))
        guess[rows] = clean
        if policy is not reference:
            base = _normal(reference.clean(x, t, c))
            cost[rows] = policy.reveal(clean, x, t).kl(reference.reveal(base, x, t))
    return guess.view(*(count + 1,) * length, length, count), cost


def _end(policy: MaskedPolicy, steps: Iterable[tuple[int, Tensor, Tensor]]) -> tuple[Points, Scalar]:
    """The distribution of x_0, and the expected sum of what the steps cost."""
    law, total = _start(policy), torch.zeros((), dtype=torch.float64)
    for t, guess, cost in steps:
        total = total + law.flatten() @ cost
        law = _forward(policy, law, guess, t)
    return law[(slice(policy.categories),) * law.ndim].flatten(), total  # of the states without a mask


def _forward(policy: MaskedPolicy, law: Tensor, guess: Tensor, t: int) -> Tensor:
    """The distribution of x_{t-1}."""
    after = torch.zeros_like(law)
    for before, drawn, chance, factors in _moves(policy, guess, t):
        part = law[before] * chance
        for factor in factors:
            part = part * factor
        after[drawn] += part
    return after


def _backward(
    policy: MaskedPolicy,
    mean: Tensor,
    guess: Tensor,
    t: int,
    of: Callable[[Tensor], Tensor] = lambda mean: mean,
) -> Tensor:
    """E[f(x_{t-1}) | x_t] of every x_t: the transpose of `_forward`.

    Args:
        of: Maps the mean over tokens before the mean over positions is taken.
    """
    every = torch.zeros_like(mean)
    for before, drawn, chance, factors in _moves(policy, guess, t):
        part = mean[drawn]
        for factor in factors:
            part = part * factor
        summed = [axis for axis, cut in enumerate(before) if cut != slice(None)]
        every[before] += chance * of(part.sum(summed, keepdim=True) if summed else part)
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
    stay = None if policy.unmasking == "positions" else _stay(policy, t)
    sizes = [drawn_now] if stay is None else range(len(free) + 1)
    for size in sizes:
        for positions in itertools.combinations(free, size):
            before = tuple(slice(count, None) if i in positions else slice(None) for i in range(length))
            drawn = tuple(slice(count) if i in positions else slice(None) for i in range(length))
            factors = [guess[(*before, i)].movedim(-1, i).squeeze(i + 1) for i in positions]
            if stay is None:
                chance = 1 / math.comb(int(policy.left[t]), size)
            else:
                others = tuple(slice(1) if i in positions else slice(None) for i in range(length))
                chance = (1 / t) ** size * stay[others]
            yield before, drawn, chance, factors


def _stay(policy: MaskedPolicy, t: int) -> Tensor:
    """Of every state, the probability that a Bernoulli step leaves all of its masks."""
    each = torch.ones(policy.categories + 1, dtype=torch.float64)
    each[policy.categories] = 1 - 1 / t
    return functools.reduce(lambda table, axis: table[..., None] * axis, [each] * len(policy.start))


def _start(policy: MaskedPolicy) -> Tensor:
    law = torch.zeros((policy.categories + 1,) * len(policy.start), dtype=torch.float64)
    law[tuple(policy.start.tolist())] = 1
    return law


def _normal(probs: Tensor) -> Tensor:
    return probs.double() / probs.double().sum(-1, keepdim=True)


def _masked(policy: Policy) -> MaskedPolicy:
    if not isinstance(policy, MaskedPolicy):
        raise ValueError(f"exact.landscape needs a MaskedPolicy, but got {type(policy).__name__}")
    return policy
