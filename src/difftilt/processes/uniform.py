"""Uniform-state diffusion of sequences: noise replaces a token by a uniformly random one.

With b_t the chance that a token was redrawn by t, the noised distribution of a token drawn from w is

    m_t(y) = (1 - b_t) w(y) + b_t / K,

and by Bayes' rule, where w is the distribution of x_0 given the other positions, each position of the chain
draws

    p(x_{t-1} | x_t) = q(x_t | x_{t-1}) m_{t-1}(x_{t-1}) / m_t(x_t).

The network guesses w. What x_t says of its own position's token is added exactly, so that bounded logits
make bounded rates, however small the steps; where the positions are independent w is the same for all t.

Austin et al. (2021, D3PM), https://arxiv.org/abs/2107.03006; Campbell et al. (2022) for the limit of small
steps, https://arxiv.org/abs/2205.14987.
"""

from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size
from difftilt.policy import Decode, Diffusion, as_it_is
from difftilt.settings import check_value
from difftilt.shapes import Cond, Levels, PerSample, Probs, Sample, State, Step
from difftilt.transition import Categorical, one_hot

Schedule = Literal["linear", "cosine"]


class UniformPolicy(Diffusion):
    """A chain that starts from random tokens. A step may change any of them, and change it again later.

    Args:
        network: Maps (one-hot states, t, cond) to logits (batch, length, categories) of w.
        categories: K, how many tokens there are, at least 2.
        length: Tokens per sample.
        steps: T.
        schedule: b_t: `linear`, t / T; `cosine`, 1 - cos(pi t / 2T); or T + 1 numbers that rise from 0 to
            at most 1. Below 1 the distribution of x_T is not quite that of the noise.
        decode: Maps x_0, tokens or one-hot vectors, to what rewards score.
    """

    noise: Tensor

    def __init__(
        self,
        network: nn.Module,
        categories: int,
        length: int,
        *,
        steps: int,
        schedule: Schedule | Levels = "linear",
        decode: Decode = as_it_is,
    ):
        super().__init__()
        _check(categories, length, steps)
        self.network, self.categories, self.length, self.steps = network, categories, length, steps
        self.symbols = categories
        self._decode = decode
        self.register_buffer("noise", _levels(schedule, steps))

    def initial(self, cond: Cond) -> Categorical:
        uniform = torch.full_like(self.noise[:1], 1 / self.categories)
        return Categorical(uniform.expand(batch_size(cond), self.length, self.categories))

    def forward(self, x: State, t: Step, cond: Cond) -> Categorical:
        return self.reverse(self.guess(x, t, cond), x, t)

    def posterior(self, x_0: State, x: State, t: Step) -> Categorical:
        return self.reverse(self._one_hot(x_0), x, t)

    def reverse(self, guess: Probs, x: State, t: Step) -> Categorical:
        """The step that reverses the noise if x_0 was drawn from w, a guess that has not seen x_t's token."""
        # linear in x, so that the slope in a relaxed x is the difference between two tokens of x
        seen = self._one_hot(x) / self._noised(guess, t)
        return Categorical(self._noised(guess, t - 1) * _redrawn(seen, self._share(t)))

    def guess(self, x: State, t: Step, cond: Cond) -> Probs:
        """w: what the network says of each token of x_0, before it is told the one in its place in x_t."""
        seen = self._one_hot(x)
        logits = self.network(seen, t, cond)
        return logits.to(torch.promote_types(logits.dtype, seen.dtype)).softmax(-1)

    def clean(self, x: State, t: Step, cond: Cond) -> Probs:
        """p(x_0 | x_t) of each position: w(x_0) q(x_t | x_0) / m_t(x_t)."""
        guess = self.guess(x, t, cond)
        return guess * self._noised(self._one_hot(x) / self._noised(guess, t), t)

    def decode(self, x: State, cond: Cond) -> Sample:
        return self._decode(x, cond)

    def noised(self, x_0: State, t: Step) -> Categorical:
        return Categorical(self._noised(self._one_hot(x_0), t))

    def signal(self, t: Step) -> PerSample:
        return 1 - self.noise[t]

    def noising(self, x_next: State, t: Step) -> Categorical:
        return Categorical(_redrawn(self._one_hot(x_next), self._share(t)))

    def _one_hot(self, x: State) -> Probs:
        return one_hot(x, self.categories).to(self.noise.dtype)

    def _share(self, t: Step) -> PerSample:
        """The chance that the step to t redraws a token."""
        return (self.noise[t] - self.noise[t - 1]) / (1 - self.noise[t - 1])

    def _noised(self, law: Probs, t: Step) -> Probs:
        """m_t, if x_0 is drawn from a distribution."""
        return _redrawn(law, self.noise[t])


def _redrawn(law: Probs, share: PerSample) -> Probs:
    """Tokens of which a share is drawn again uniformly: a symmetric matrix, and so Bayes' too."""
    return torch.lerp(law, law.mean(-1, keepdim=True).expand_as(law), share[:, None, None].to(law))


def _levels(schedule: str | Levels, steps: int) -> Levels:
    """b_0, ..., b_T."""
    if isinstance(schedule, Tensor):
        noise = schedule
    else:
        check_value("schedule", schedule, Schedule)
        share = torch.arange(steps + 1, dtype=torch.float64) / steps
        noise = share if schedule == "linear" else 2 * torch.sin(torch.pi / 4 * share) ** 2
    if len(noise) != steps + 1 or noise[0] != 0 or not (noise.diff() > 0).all() or noise[-1] > 1:
        raise ValueError(
            f"schedule needs {steps + 1} numbers that rise from 0 to at most 1, but got {noise.tolist()}"
        )
    return noise.to(torch.get_default_dtype())


def _check(categories: int, length: int, steps: int) -> None:
    if categories < 2 or length < 1 or steps < 1:
        raise ValueError(
            "a uniform chain needs 2 or more categories, 1 or more tokens and 1 or more steps, but got"
            f" categories = {categories}, length = {length} and steps = {steps}"
        )
