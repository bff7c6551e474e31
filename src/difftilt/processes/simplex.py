"""Diffusion of sequences on the simplex: each token is a corner, and noise moves it to anywhere inside.

A point x of the simplex of K categories breaks a stick of length 1: v_i in (0, 1) is the share that category
i takes of what is left by those before it. The noise moves the K - 1 numbers v_i by independent Jacobi
diffusions (see `jacobi`) that keep Beta(1, b_i), b = K - 1, ..., 1, and so together the uniform distribution
of x. Token k starts at v_i = 0 for i < k and v_k = 1; the v_i behind it start from Beta(1, b_i), and say
nothing.

Such diffusions run the same way in both directions. With R_i the density of v_i relative to Beta(1, b_i), the
reverse of dv = drift dt + g dW, g^2 = s v (1 - v), is

    dv = (drift + g^2 sum_k p(x_0 = k | x_t) d log R(v | k) / dv) dt + g dW,

so that the network's guess of x_0 is all that a step needs. Two chains whose guesses differ have the KL
g^2 |score - score'|^2 dt / 2 per step, which is that of the steps' Gaussians as they are.

Avdeyev et al. (2023, DDSM), https://arxiv.org/abs/2305.10699. Deviation: DDSM's network predicts the score.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.conditions import batch_size
from difftilt.policy import Decode, Diffusion, as_it_is
from difftilt.processes.jacobi import CELLS, Histogram, kernels, stationary, to_angle
from difftilt.shapes import Cond, Levels, PerSample, Probs, Real, Sample, State, Step, Tokens
from difftilt.transition import Gaussian

INSIDE = 1e-5  # how far from 0 and 1 a step takes v to be


def schedule(steps: int, end: float = 1 / 400, horizon: float = 4.0, power: float = 2.0) -> Levels:
    """T + 1 times from `end`, where tokens are told apart, to `horizon`, where nothing of them is left.

    t^(1 / power) grows evenly. 2 spends the steps where the chain's error arises; 1 makes them equal, as DDSM
    has them, and is what reward backpropagation needs: otherwise the states have settled in corners some
    steps before the end, and the gradient that passes those is next to nothing.
    """
    root = torch.linspace(end ** (1 / power), horizon ** (1 / power), steps + 1, dtype=torch.float64)
    return root**power


class SimplexPolicy(Diffusion):
    """A chain that moves from anywhere in the simplex to a corner, by Euler steps of the reverse diffusion.

    A state holds any real numbers, and v is how they are read: clamped, at least 1e-5 from 0 and 1. A step
    adds a Gaussian to the number itself, of a mean and a variance read at v: its density and KL are right as
    they are, and numbers that left (0, 1) are drawn back. The last step, from x_0 to the nearest corner, is
    deterministic and belongs to `decode`.

    Rewards see one-hot vectors, never points inside the simplex, so that nothing can be gained from a
    relaxation. Their gradient is passed on to the point as if it had been the corner (straight-through):
    it is biased where the reward is not linear in between.

    Args:
        network: Maps (probabilities of `categories` + 1 tokens, t, cond) to logits (batch, length,
            categories) of the distribution of each token given the other positions; what x_t says of the
            position's own token is added exactly. It sees q(x_t | x_0 = k) of each position, divided by its
            sum over k, which loses nothing of x_0. A mask, the last, is never seen: networks of masked chains
            fit.
        categories: K, how many tokens there are, 2 to 64.
        length: Tokens per sample.
        time: T + 1 times of the noise, rising, as of `schedule`.
        decode: Maps one-hot vectors to what rewards score.
    """

    bounded = False  # a density at a token's corner is no probability of the token

    time: Tensor
    rest: Tensor
    log_ratio: Tensor
    slope: Tensor
    mass: Tensor
    start: Tensor

    def __init__(
        self,
        network: nn.Module,
        categories: int,
        length: int,
        *,
        time: Levels,
        decode: Decode = as_it_is,
    ):
        super().__init__()
        _check(categories, length, time)
        self.network, self.categories, self.length, self.steps = network, categories, length, len(time) - 1
        self._decode = decode
        rest = range(categories - 1, 0, -1)
        tables = [kernels(b, time.double()) for b in rest]
        buffers = {
            "time": time,
            "rest": torch.tensor([*rest]),
            "log_ratio": torch.stack([table.log_ratio for table in tables], 1),
            "slope": torch.stack([table.slope for table in tables], 1),
            "mass": torch.stack([table.mass for table in tables], 1),
            "start": torch.stack([stationary(b) for b in rest]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.to(torch.get_default_dtype()), persistent=False)

    def initial(self, cond: Cond) -> Histogram:
        return Histogram(self.start.expand(batch_size(cond), self.length, -1, -1))

    def forward(self, x: State, t: Step, cond: Cond) -> Gaussian:
        return self.reverse(self.clean(x, t, cond), x, t)

    def posterior(self, x_0: State, x: State, t: Step) -> Gaussian:
        """To first order in the step, like the chain's own."""
        return self.reverse(F.one_hot(self.tokens(x_0), self.categories).to(x.dtype), x, t)

    def reverse(self, clean: Probs, x: State, t: Step) -> Gaussian:
        """The step of the reverse diffusion, given probabilities of x_0."""
        _, slope = self._kernel(x, t)
        behind = clean.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # p(x_0 > i)
        pull = behind * slope[..., 0] + clean[..., :-1] * slope[..., 1]
        return self._euler(x, t, pull)

    def noising(self, x_next: State, t: Step) -> Gaussian:
        """To first order in the step."""
        return self._euler(x_next, t, torch.zeros_like(x_next))

    def _euler(self, x: State, t: Step, pull: Real) -> Gaussian:
        """N(x + (drift + g^2 d log R / dv) dt, g^2 dt), given d log R / d phi."""
        v, dt = _inside(x), (self.time[t] - self.time[t - 1])[:, None, None]
        speed = 2 / (1 + self.rest)
        root = (v * (1 - v)).sqrt()
        drift = speed * ((1 - (1 + self.rest) * v) / 2 + root * pull)
        return Gaussian(x + drift * dt, root * (speed * dt).sqrt())

    def loss(self, x_0: State, t: Step, cond: Cond) -> PerSample:
        """As of every chain, of samples that are tokens or states."""
        return super().loss(x_0 if x_0.is_floating_point() else self.state(x_0), t, cond)

    def loss_at(self, x_0: State, x: State, t: Step, cond: Cond) -> PerSample:
        """-sum log p(x_0 | x_t) over the positions, in nats: it has the minimum of the steps' KL."""
        logits = self.logits(x, t, cond)
        return F.cross_entropy(logits.transpose(1, 2), self.tokens(x_0), reduction="none").sum(1)

    def clean(self, x: State, t: Step, cond: Cond) -> Probs:
        """p(x_0 | x_t) of each position."""
        return self.logits(x, t, cond).softmax(-1)

    def logits(self, x: State, t: Step, cond: Cond) -> Probs:
        """log p(x_0 | x_t) of each position, up to a constant."""
        evidence = self.evidence(x, t)
        seen = F.pad(evidence.softmax(-1), (0, 1))
        return self.network(seen, t, cond).to(evidence.dtype) + evidence

    def evidence(self, x: State, t: Step) -> Probs:
        """log q(x_t | x_0 = k) of each position and token, up to a constant."""
        log_ratio, _ = self._kernel(x, t)
        before = F.pad(log_ratio[..., 0].cumsum(-1), (1, 0))
        return before + F.pad(log_ratio[..., 1], (0, 1))

    def _kernel(self, x: State, t: Step) -> tuple[Tensor, Tensor]:
        """log R of each v and d log R / d phi, for starts at 0 and at 1."""
        phi, width = to_angle(_inside(x)), torch.pi / CELLS
        cell = (phi / width).long().clamp(max=CELLS - 1)
        at = (t[:, None, None], torch.arange(self.categories - 1, device=x.device), cell)
        left, right = self.slope[at], self.slope[(*at[:2], cell + 1)]
        past = (phi - cell * width)[..., None]
        slope = torch.lerp(left, right, past / width)
        return self.log_ratio[at] + past * (left + slope) / 2, slope

    def noised(self, x_0: State, t: Step) -> Histogram:
        token = self.tokens(x_0)[..., None]
        stick = torch.arange(self.categories - 1, device=token.device)
        moved = self.mass[t[:, None, None], stick, (token == stick).long()]
        return Histogram(torch.where((stick > token)[..., None], self.start, moved))

    def signal(self, t: Step) -> PerSample:
        return (-self.time[t]).exp()

    def state(self, token: Tokens) -> State:
        """The corners of tokens: x_0 as the noise wants it."""
        return F.one_hot(token, self.categories)[..., :-1].to(self.time.dtype)

    def tokens(self, x_0: State) -> Tokens:
        """The nearest corners."""
        return self.point(x_0).argmax(-1)

    def point(self, x: State) -> Probs:
        """Points of the simplex, of states; of points, which have one number more, themselves."""
        if x.shape[-1] == self.categories:
            return x
        v = _inside(x)
        left = F.pad((1 - v).cumprod(-1), (1, 0), value=1.0)
        return left * F.pad(v, (0, 1), value=1.0)

    def decode(self, x: State, cond: Cond) -> Sample:
        point = self.point(x)
        corner = F.one_hot(point.argmax(-1), self.categories).to(point.dtype)
        return self._decode(corner + (point - point.detach()), cond)


def _inside(x: State) -> Real:
    return x.clamp(INSIDE, 1 - INSIDE)


def _check(categories: int, length: int, time: Levels) -> None:
    if not 2 <= categories <= 64 or length < 1:
        raise ValueError(
            "a simplex chain needs 2 to 64 categories and 1 or more tokens, but got categories ="
            f" {categories} and length = {length}"
        )
    if len(time) < 2 or not bool((time.diff() > 0).all()) or time[0] < 1e-3:
        raise ValueError(
            f"time needs 2 or more numbers that rise from 0.001 or above, but got {time.tolist()}; schedule"
            " makes them"
        )
