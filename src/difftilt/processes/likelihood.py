"""A lower bound of log p(x_0 | c) for every chain that reverses a noising process.

    log p(x_0) >= E_q[ log p(x_0 | x_1) ] - sum_{t=2}^T E_q[ KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) ]
                  - KL(q(x_T | x_0) || p(x_T))

with equality where the chain reverses the noise exactly.
"""

import torch

from difftilt.policy import Diffusion
from difftilt.shapes import Cond, PerSample, State, Step


def elbo(policy: Diffusion, x_0: State, cond: Cond) -> PerSample:
    """The bound in nats, estimated without bias from one t and one x_t per sample. Minus its mean is a loss.

    Args:
        x_0: Clean states, as tokens where the chain draws tokens.

    Raises:
        ValueError: If x_0 are the corners of a simplex: a density there is no probability.

    Source:
        Ho et al. (2020), Eq. 5, https://arxiv.org/abs/2006.11239; one t as in Austin et al. (2021).
    """
    _check(policy)
    t = torch.randint(1, policy.steps + 1, (len(x_0),), device=x_0.device)
    at_t = step_evidence(policy, x_0, policy.corrupt(x_0, t), t, cond)
    return policy.steps * at_t + start_evidence(policy, x_0, cond)


def step_evidence(policy: Diffusion, x_0: State, x: State, t: Step, cond: Cond) -> PerSample:
    """The bound's term of one step at x_t ~ q(x_t | x_0): log p(x_0 | x_1), or minus a KL where t > 1."""
    _check(policy)
    step = policy(x, t, cond)
    return torch.where(t == 1, step.log_prob(x_0), -policy.posterior(x_0, x, t).kl(step))


def start_evidence(policy: Diffusion, x_0: State, cond: Cond) -> PerSample:
    """log p(x_T) - log q(x_T | x_0) at one draw of x_T ~ q: 0 if the noise leaves nothing of x_0."""
    noise = policy.noised(x_0, torch.full((len(x_0),), policy.steps, device=x_0.device))
    x = noise.sample()
    return policy.initial(cond).log_prob(x) - noise.log_prob(x)


def _check(policy: Diffusion) -> None:
    if policy.pretrain_with != "evidence.elbo":
        raise ValueError(
            f"log p(x_0) of a {type(policy).__name__} has no bound, for a density at a token's corner is no"
            f" probability of the token; pretrain it with {policy.pretrain_with}"
        )
