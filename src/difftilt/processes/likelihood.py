"""A lower bound of log p(x_0 | c) for every chain that reverses a noising process.

    log p(x_0) >= E_q[ log p(x_0 | x_1) ] - sum_{t=2}^T E_q[ KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) ]
                  - KL(q(x_T | x_0) || p(x_T))

with equality where the chain reverses the noise exactly.
"""

import math

import torch

from difftilt.conditions import take
from difftilt.policy import Diffusion, Trajectory, level, path_log_prob
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
    t = torch.randint(1, policy.steps + 1, (len(x_0),), device=x_0.device)
    at_t = step_evidence(policy, x_0, policy.corrupt(x_0, t), t, cond)
    return policy.steps * at_t + start_evidence(policy, x_0, cond)


def step_evidence(policy: Diffusion, x_0: State, x: State, t: Step, cond: Cond) -> PerSample:
    """The bound's term of one step at x_t ~ q(x_t | x_0): log p(x_0 | x_1), or minus a KL where t > 1."""
    if not policy.bounded:
        raise ValueError(
            f"log p(x_0) of a {type(policy).__name__} has no bound, for a density at a token's corner is no"
            " probability of the token; descend its loss instead"
        )
    evidence, last = -policy.loss_at(x_0, x, t, cond), (t == 1).nonzero()[:, 0]
    if policy.symbols or not len(last):  # of tokens the last loss is -log p(x_0 | x_1) as it is
        return evidence
    end = policy(x[last], t[last], take(cond, last)).log_prob(x_0[last])
    return evidence.index_put((last,), end)


def start_evidence(policy: Diffusion, x_0: State, cond: Cond) -> PerSample:
    """log p(x_T) - log q(x_T | x_0) at one draw of x_T ~ q: 0 if the noise leaves nothing of x_0."""
    noise = policy.noised(x_0, level(x_0, policy.steps))
    x = noise.sample()
    return policy.initial(cond).log_prob(x) - noise.log_prob(x)


@torch.no_grad()
def noised_path(policy: Diffusion, x_0: State, cond: Cond) -> tuple[Trajectory, PerSample]:
    """A chain x_T, ..., x_1 that the noise makes of each x_0, and its log q(x_T, ..., x_1 | x_0) in nats.

    Nobody drew the chain as it stands, so that its `log_prob` is 0.
    """
    states, log_q = [x_0], torch.zeros(len(x_0), dtype=torch.float64, device=x_0.device)
    for t in range(1, policy.steps + 1):
        step = policy.noising(states[-1], level(x_0, t))
        states.append(step.sample())
        log_q = log_q + step.log_prob(states[-1])
    nobody = log_q.new_zeros(policy.steps + 1, len(x_0))
    return Trajectory(torch.stack(states[::-1]), policy.decode(x_0, cond), nobody, cond), log_q


@torch.no_grad()
def path_evidence(policy: Diffusion, x_0: State, cond: Cond, paths: int) -> PerSample:
    """The logarithm of an estimate of p(x_0 | c) that has no bias, the mean of P(path) / q(path | x_0).

    Args:
        paths: Chains that the noise makes of each x_0; each costs a pass per step. Of masked sequences that
            are drawn one position at a time they are random orders, and one of them is exact where the
            network's guesses agree with each other.
    """
    found = []
    for _ in range(paths):
        path, log_q = noised_path(policy, x_0, cond)
        found.append(path_log_prob(policy, path).sum(0) - log_q)
    return torch.stack(found).logsumexp(0) - math.log(paths)
