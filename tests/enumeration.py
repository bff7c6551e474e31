"""Chains of tokens small enough that every state is listed."""

from typing import Any

import torch
from torch import Tensor, nn

from difftilt.conditions import unconditional
from difftilt.policy import Policy
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Cond


def every_state(categories: int, length: int) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(categories)] * length).view(-1, length)


def table(law_at, states: Tensor) -> Tensor:
    """Probability of each state (column) at each state (row), from `law_at(states)`."""
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
    """E r(x_0) and the KL of paths, step by step, with gradients; x_T is drawn like the reference's."""
    law, (count, steps) = laws(policy, states), (len(states), policy.steps)
    rows = (states.repeat(steps, 1), torch.arange(1, steps + 1).repeat_interleave(count))
    cond = unconditional(steps * count)
    kl = policy(*rows, cond).kl(reference(*rows, cond)).view(steps, count)
    return law[0] @ score, (law[1:] * kl).sum()


class Table(nn.Module):
    """Logits of every state with its masks, whatever t."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)  # ((K + 1)^L, L, K)
        self.seen: list[int] = []

    def forward(self, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        self.seen.append(len(x))
        digits = x.shape[2] ** torch.arange(x.shape[1]).flip(0)
        return self.logits[(x.argmax(-1) * digits).sum(1)]


def masked_table(categories: int, length: int, **settings: Any) -> MaskedPolicy:
    """A masked chain whose guesses are random and contradict each other, in double precision."""
    logits = torch.randn((categories + 1) ** length, length, categories, dtype=torch.float64)
    return MaskedPolicy(Table(logits), categories, length, **settings).requires_grad_(False)
