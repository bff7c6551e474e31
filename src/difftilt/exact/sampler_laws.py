"""What samplers draw from a landscape, exactly: chains that unmask one position per step, state by state.

After T - t steps the chain is in one of the states with t masks, and each leads to t K others. A sampler is
known if the probability of each of them is.
"""

import math
from collections.abc import Callable

import torch

from difftilt.data.vocabulary import all_sequences, place_values
from difftilt.exact import result
from difftilt.guidance.flip import as_flip
from difftilt.objective import Objective, Value
from difftilt.policy import Policy, level
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Cond, Index, Kernel, Mask, Moves, PerSample, Points, State
from difftilt.transition import relative_entropy

ROWS = 2**13  # states at a time
STEP = 0.4  # between the logarithms of u in the quadrature: its error is exp(-pi^2 / STEP)
LEFT_OUT = 25.0  # nats: what the quadrature cuts off at either end


@torch.no_grad()
def evaluate_flips(
    objective: Objective, policy: Policy, scores: Points | None = None, cond: Cond | None = None
) -> result.TableEvaluation:
    """Exact reward, KL and distribution of x_0 of a chain each step of which draws one position and its
    token.

    Args:
        policy: For instance a `FlipGuided` one.
        scores: The reward of every sequence, if it is known; else the reward is asked.
    """

    def step(x: State, t: int, base: Kernel, after: Moves) -> Kernel:
        return _moves(policy, x, t, cond)

    return _walk(objective, step, scores, cond)


@torch.no_grad()
def evaluate_svdd(
    objective: Objective,
    value: Value,
    candidates: int,
    scores: Points | None = None,
    cond: Cond | None = None,
) -> result.TableEvaluation:
    """Exact reward, KL and distribution of x_0 of `SVDD` with single particles that the reference proposes.

    Args:
        value: An estimate of the soft value at t > 0.
        candidates: M, at least 1.
        scores: The reward of every sequence, if it is known; else the reward is asked.
    """
    log_w = tabulate(objective, value, scores, cond) / objective.alpha

    def step(x: State, t: int, base: Kernel, after: Moves) -> Kernel:
        return one_of(base, log_w[after], candidates)

    return _walk(objective, step, scores, cond)


@torch.no_grad()
def tabulate(
    objective: Objective, value: Value, scores: PerSample | None = None, cond: Cond | None = None
) -> Points:
    """A value of every state with its masks, whose number is t; -inf where no chain is."""
    reference = _one_at_a_time(objective)
    every, masks = _states(reference)
    table = torch.full((len(every),), -torch.inf, dtype=torch.float64)
    table[_complete(reference)] = _scores(objective, scores, cond)
    for rows in (masks > 0).nonzero()[:, 0].split(ROWS):
        table[rows] = value(every[rows], masks[rows], result.given(cond, len(rows))).double()
    return table


def one_of(probs: Kernel, log_w: Kernel, candidates: int) -> Kernel:
    """The distribution of one of M draws of each row's distribution p, chosen in proportion to its weight w:

    P(j) = M p_j w_j int_0^inf exp(-u w_j) (sum_k p_k exp(-u w_k))^(M - 1) du,

    by the trapezoidal rule in log u.
    """
    drawn = probs > 0
    log_w = log_w.where(drawn, -torch.inf)
    most = log_w.amax(1, keepdim=True)
    log_w = (log_w - most).where(drawn, 0)  # the largest is 1
    lowest = log_w.min().item()
    ends = (-LEFT_OUT - math.log(candidates), math.log(LEFT_OUT) - lowest)
    total = torch.zeros_like(probs)
    weight = log_w.exp()
    for k in range(math.ceil((ends[1] - ends[0]) / STEP) + 1):
        u = math.exp(ends[0] + k * STEP)
        stays = (-u * weight).exp()
        total += u * stays * (probs * stays).sum(1, keepdim=True) ** (candidates - 1)
    return candidates * STEP * probs * weight * total


def _walk(
    objective: Objective,
    step: Callable[[State, int, Kernel, Moves], Kernel],
    scores: Points | None,
    cond: Cond | None,
) -> result.TableEvaluation:
    """The distributions of x_T, ..., x_0, one after the other.

    Args:
        step: Maps states, t, and the probabilities and numbers of all next states under the reference to
            their probabilities under the sampler.
    """
    reference = _one_at_a_time(objective)
    count, places = reference.categories, place_values(reference.categories + 1, len(reference.start))
    every, masks = _states(reference)
    law = torch.zeros(len(every), dtype=torch.float64)
    law[(reference.start * places).sum()] = 1
    kl = torch.zeros((), dtype=torch.float64)
    for t in range(reference.steps, 0, -1):
        for rows in (masks == t).nonzero()[:, 0].split(ROWS):
            x = every[rows]
            base = _moves(reference, x, t, cond)
            after = rows[:, None, None] + (torch.arange(count) - count) * places[:, None]
            after = after[x == count].view_as(base)
            chosen = step(x, t, base, after)
            kl = kl + law[rows] @ relative_entropy(chosen, base).sum(1)
            law.index_add_(0, after.flatten(), (law[rows, None] * chosen).flatten())
    scores, law = _scores(objective, scores, cond), law[_complete(reference)]
    return result.TableEvaluation(law @ scores, kl, objective.alpha, law)


def _moves(policy: Policy, x: State, t: int, cond: Cond | None) -> Kernel:
    """Probabilities of every token at every masked position, in this order."""
    joint = as_flip(policy(x, level(x, t), result.given(cond, len(x)))).joint.double()
    count = policy.symbols - 1
    moves = joint[..., :count][x == count].view(len(x), -1)
    return moves / moves.sum(1, keepdim=True)


def _states(reference: MaskedPolicy) -> tuple[State, Index]:
    """All states, and how many masks each has; -1 where the chain never is, for its start differs."""
    every = all_sequences(reference.categories + 1, len(reference.start))
    fixed = reference.start != reference.categories
    masks = (every == reference.categories).sum(1)
    return every, torch.where((every == reference.start)[:, fixed].all(1), masks, -1)


def _complete(reference: MaskedPolicy) -> Mask:
    """Which states have no mask: all sequences, in their order."""
    every = all_sequences(reference.categories + 1, len(reference.start))
    return (every != reference.categories).all(1)


def _scores(objective: Objective, scores: Points | None, cond: Cond | None) -> Points:
    """The reward of every sequence."""
    if scores is not None:
        return scores
    reference = _one_at_a_time(objective)
    every = all_sequences(reference.categories, len(reference.start))
    return result.score(objective, reference, every, cond)


def _one_at_a_time(objective: Objective) -> MaskedPolicy:
    reference = objective.reference
    if not isinstance(reference, MaskedPolicy) or reference.unmasking != "positions":
        raise ValueError(
            "exact.sampler_laws needs a MaskedPolicy that draws one position per step, but got"
            f" {type(reference).__name__}; leave its unmasking at 'positions'"
        )
    if reference.left.diff().ne(1).any():
        raise ValueError(
            f"exact.sampler_laws needs one position per step, but {reference.steps} steps draw"
            f" {int(reference.left[-1])} positions; leave the steps at their default"
        )
    return reference
