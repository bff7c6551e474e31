"""Chains of tokens small enough that every state is listed."""

import torch
from torch import Tensor

from difftilt.conditions import unconditional
from difftilt.policy import Policy


def every_state(categories: int, length: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(categories)] * length).view(-1, length)


def table(law_at, states: Tensor) -> Tensor:
    """Probability of each state (column) under the law at each state (row), from `law_at(states)`."""
    count = len(states)
    law = law_at(states.repeat_interleave(count, 0))
    return law.log_prob(states.repeat(count, 1)).exp().view(count, count)


def kernels(policy: Policy, states: Tensor) -> Tensor:
    """The table of every step, t = 1, ..., T, with gradients."""
    count, steps = len(states), policy.steps
    t = torch.arange(1, steps + 1).repeat_interleave(count**2)
    x = states.repeat_interleave(count, 0).repeat(steps, 1)
    law = policy(x, t, unconditional(len(x)))
    return law.log_prob(states.repeat(steps * count, 1)).exp().view(steps, count, count)


def laws(policy: Policy, states: Tensor) -> Tensor:
    """Probability of every state under x_0, ..., x_T, with gradients."""
    found = [policy.initial(unconditional(len(states))).log_prob(states).exp()]
    for kernel in kernels(policy, states).flip(0):
        found.append(found[-1] @ kernel)
    return torch.stack(found[::-1])


def evaluate(policy: Policy, reference: Policy, states: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """E r(x_0) and the KL of paths, step by step, with gradients; the law of x_T is the reference's."""
    law, (count, steps) = laws(policy, states), (len(states), policy.steps)
    rows = (states.repeat(steps, 1), torch.arange(1, steps + 1).repeat_interleave(count))
    cond = unconditional(steps * count)
    kl = policy(*rows, cond).kl(reference(*rows, cond)).view(steps, count)
    return law[0] @ score, (law[1:] * kl).sum()
