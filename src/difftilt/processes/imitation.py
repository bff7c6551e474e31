"""Imitation: the cost -log p of what somebody else drew, up to a constant."""

import torch

from difftilt.policy import Diffusion, Policy, Transitions, decide
from difftilt.shapes import Cond, PerSample, State, Step


def chain_cost(policy: Policy, rows: Transitions) -> PerSample:
    """-log p(x_{t-1} | x_t) of steps that somebody took."""
    return -decide(policy, rows).log_prob(rows.x_next)


def denoising_cost(policy: Policy, x_0: State, t: Step, cond: Cond) -> PerSample:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) of samples that are noised anew.

    Where t = T + 1 it is -log p(x_T). It imitates the chains that led to the samples if the chain reverses
    its noising process q.
    """
    policy, level = diffusion(policy, "denoising"), t.clamp(max=policy.steps)
    x = policy.corrupt(x_0, level)
    cost = policy.posterior(x_0, x, level).kl(policy(x, level, cond))
    return torch.where(t > policy.steps, -policy.initial(cond).log_prob(x), cost)


def diffusion(policy: Policy, form: str) -> Diffusion:
    """The policy, if it reverses a noising process, which this form of imitation needs."""
    if not isinstance(policy, Diffusion):
        raise ValueError(
            f"form '{form}' needs a chain that reverses a noising process, which a {type(policy).__name__} is"
            " not; use form 'trajectory'"
        )
    return policy
