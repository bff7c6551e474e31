"""Soft values without training, from the clean sample that the network expects (Chung et al., 2023)."""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from difftilt.conditions import repeat
from difftilt.guidance.hard_wired import hard_wired
from difftilt.objective import Objective
from difftilt.policy import Diffusion, reversing
from difftilt.settings import Count, Natural, check_value
from difftilt.shapes import Cond, PerSample, Real, State, Step
from difftilt.transition import Categorical, event_sum, gaussian, tokens

Order = Literal[1, 2]


class PosteriorMean:
    """v_t(x_t) = r(E[x_0 | x_t]), one network pass and one reward call; DPS's value, by Tweedie's formula.

    It ignores how uncertain x_0 still is, and overshoots where r is curved. The second order takes x_0 for
    Gaussian with the covariance C that Tweedie's formula gives, and is exact to first order in C:

        v_t = r(m) + tr(H C) / 2 + g' C g / (2 alpha),   C = (s_t^2 / a_t) dm / dx_t,

    with m = E[x_0 | x_t] and the gradient g and Hessian H of r at m. It is exact where r is linear and x_0
    is Gaussian given x_t, and too large where g' C g / alpha is much more than r can still rise.

    Of tokens the value takes the likeliest of each position, for rewards know no mixtures of them; or it
    takes draws from the probabilities of each position, v_t = alpha log mean exp(r / alpha).

    Args:
        objective: Its reference, a chain that reverses a noising process, expects x_0; its reward scores it.
        order: 2 for the correction, of Gaussian noise and differentiable rewards.
        probes: Random signs that estimate tr(H C), at least 1; in one dimension one is exact.
        draws: Of tokens, reward calls per state; 0 takes the likeliest.
    """

    def __init__(self, objective: Objective, *, order: Order = 1, probes: int = 1, draws: int = 0):
        for name, setting, hint in (
            ("order", order, Order),
            ("probes", probes, Count),
            ("draws", draws, Natural),
        ):
            check_value(name, setting, hint)
        self._objective = objective
        self._reference = reversing(objective.reference, "the posterior mean needs", "learn a value instead")
        self._order, self._probes, self._draws = order, probes, draws
        if order == 2 and self._reference.symbols:
            raise ValueError("tokens have no second order; take draws of them instead")
        if draws and not self._reference.symbols:
            raise ValueError("draws are of tokens, and these states are real numbers; take order=2 instead")

    def __call__(self, x: State, t: Step, cond: Cond) -> PerSample:
        return hard_wired(self._objective, self._above, x, t, cond)

    def _above(self, x: State, t: Step, cond: Cond) -> PerSample:
        if self._order == 2:
            return self._second(x, t, cond)
        clean = self._reference.clean(x, t, cond)
        if self._draws:
            return self._drawn(clean, cond)
        return self._score(tokens(clean) if self._reference.symbols else clean, cond)

    def _score(self, x_0: State, cond: Cond) -> PerSample:
        return self._objective.reward(self._reference.decode(x_0, cond), cond)

    def _drawn(self, probs: Tensor, cond: Cond) -> PerSample:
        x_0 = Categorical(probs.repeat_interleave(self._draws, 0)).sample()
        log_w = self._score(x_0, repeat(cond, self._draws)).double() / self._objective.alpha
        return self._objective.alpha * (log_w.view(-1, self._draws).logsumexp(1) - math.log(self._draws))

    def _second(self, x: State, t: Step, cond: Cond) -> PerSample:
        wanted = x.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # others have no second derivative
            x = x if wanted else x.detach().requires_grad_()
            m = self._reference.clean(x, t, cond)
            reward = self._score(m, cond)
            g = self._slope(reward, m)
            gain = _gain(self._reference, m, t)

            def spread(v: Real) -> Real:
                """C v."""
                return gain * _product(m, x, v)

            signs = [torch.randint_like(m, 2) * 2 - 1 for _ in range(self._probes)]
            trace = torch.stack([event_sum(_product(g, m, z) * spread(z)) for z in signs]).mean(0)
            v = reward + trace / 2 + event_sum(g * spread(g)) / (2 * self._objective.alpha)
        return v if wanted else v.detach()

    def _slope(self, reward: PerSample, m: Real) -> Real:
        if not reward.requires_grad:
            raise ValueError(
                f"the second order needs a reward with a gradient, but '{self._objective.reward.name}'"
                " detaches its input; compute it with torch operations on the sample, or use order=1"
            )
        return torch.autograd.grad(reward.sum(), m, create_graph=True)[0]


def _product(y: Real, x: Real, v: Real) -> Real:
    """(dy/dx)' v; zero if y is a constant."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    return torch.autograd.grad(y, x, v, create_graph=True, materialize_grads=True)[0]


def _gain(reference: Diffusion, m: Real, t: Step) -> Real:
    """s_t^2 / a_t of x_t = a_t x_0 + s_t z."""
    noise = gaussian(reference.noised(m, t), "the second order needs Gaussian noise", "use order=1")
    signal = reference.signal(t)
    if not bool((signal > 0).all()):
        raise ValueError(
            "where the signal is 0 the network knows nothing of the spread of x_0; end the schedule above"
            " it, or use order=1"
        )
    return noise.std**2 / signal.view(-1, *(1,) * (m.ndim - 1))
