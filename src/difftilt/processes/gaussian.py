"""Gaussian denoising chains: DDPM, DDIM, flow matching and flow SDEs are one step.

With x_t = a x_0 + s z and the network's guesses x_0', z' at x_t, the chain draws

    x_{t-1} ~ N(a_next x_0' + kept z', std^2),

where the `noise` says how much of z' is kept and how much is drawn anew.
"""

from typing import Literal, cast, get_args

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size
from difftilt.policy import Decode, Diffusion, as_it_is
from difftilt.processes.noise import DDPM, Noise, added
from difftilt.processes.schedule import NoiseSchedule
from difftilt.settings import Positive, check_value
from difftilt.shapes import Cond, PerSample, Real, Sample, State, Step
from difftilt.transition import Gaussian

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
SHARP = 1e-4  # standard deviation of the posterior of a clean level, which has none


class GaussianPolicy(Diffusion):
    """A chain over noise levels; alpha = 1 - sigma is flow matching.

    Args:
        network: Maps (x_t, schedule.time[t], cond) to what `prediction_type` says, in the shape of x_t.
        schedule: Noise levels of the chain. sigma[0] > 0 unless the noise is `FixedLarge`.
        shape: Shape of one state.
        noise: Of the steps: `DDIM(eta)`, by default DDPM; `FlowSDE(noise_level)`; `Euler(noise_level)`, which
            is Flow-GRPO's; or `FixedLarge()`, the variance of q(x_t | x_{t-1}).
        prediction_type: The network's output: `epsilon` z, `sample` x_0, `v_prediction` a z - s x_0,
            `flow_prediction` z - x_0.
        clip_sample: The guess of x_0 is clamped to [-clip_sample, clip_sample], if given.
        clip_noise: Let z' follow from the clamped guess, as in DDPM; else it is the network's own, as in
            diffusers' DDIM.
        decode: Maps x_0 to what rewards score.
        tune_std: Make one factor on the standard deviation of each step a trainable parameter.
    """

    time: Tensor
    alpha: Tensor
    sigma: Tensor
    log_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        schedule: NoiseSchedule,
        shape: tuple[int, ...],
        *,
        noise: Noise = DDPM,
        prediction_type: PredictionType = "epsilon",
        clip_sample: float | None = None,
        clip_noise: bool = True,
        decode: Decode = as_it_is,
        tune_std: bool = False,
    ):
        super().__init__()
        noise.check(schedule)
        check_value("clip_sample", clip_sample, Positive | None)
        _check(schedule, prediction_type)
        self.network, self.shape, self.steps = network, tuple(shape), schedule.steps
        self.noise, self.clip_sample, self.clip_noise = noise, clip_sample, clip_noise
        self.prediction_type: PredictionType = prediction_type
        self._decode = decode
        self.register_buffer("time", schedule.time)
        self.register_buffer("alpha", schedule.alpha)
        self.register_buffer("sigma", schedule.sigma)
        log_std = torch.zeros_like(schedule.sigma)
        if tune_std:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std, persistent=False)

    def initial(self, cond: Cond) -> Gaussian:
        """N(0, alpha_T^2 + sigma_T^2): noised data of unit variance, as diffusers starts."""
        batch = batch_size(cond)
        std = (self.alpha[-1] ** 2 + self.sigma[-1] ** 2).sqrt().expand(batch, *self.shape)
        return Gaussian(torch.zeros_like(std), std)

    def forward(self, x: State, t: Step, cond: Cond) -> Gaussian:
        guess = self._guess(self.network(x, self.time[t], cond), x, t)
        x_0 = self._clipped(guess)
        mean, std = self._step(x_0, x_0 if self.clip_noise else guess, x, t, self.noise)
        return Gaussian(mean, (std * self._expand(self.log_std[t]).exp()).expand_as(mean))

    def without_noise(self, x: State, t: Step, cond: Cond) -> Real:
        """x_{t-1} by a step of the probability-flow ODE, DDIM's of eta = 0, which draws nothing."""
        guess = self._guess(self.network(x, self.time[t], cond), x, t)
        x_0, (a, s), (a_next, s_next) = self._clipped(guess), self._level(t), self._level(t - 1)
        return a_next * x_0 + s_next * (x - a * (x_0 if self.clip_noise else guess)) / s

    def posterior(self, x_0: State, x: State, t: Step) -> Gaussian:
        mean, std = self._step(x_0, x_0, x, t, DDPM)
        return Gaussian(mean, std.clamp(min=SHARP).expand_as(mean))

    def _step(self, x_0: Real, seen: Real, x: State, t: Step, noise: Noise) -> tuple[Real, Tensor]:
        """Mean and standard deviation of x_{t-1}, given x_t, x_0, and the x_0 that z' follows from."""
        (a, s), (a_next, s_next) = self._level(t), self._level(t - 1)
        kept, std = noise.split(a, s, a_next, s_next)
        return a_next * x_0 + kept * (x - a * seen) / s, std

    def decode(self, x: State, cond: Cond) -> Sample:
        return self._decode(x, cond)

    def noised(self, x_0: State, t: Step) -> Gaussian:
        a, s = self._level(t)
        return Gaussian(a * x_0, s.expand_as(x_0))

    def signal(self, t: Step) -> PerSample:
        return self.alpha[t]

    def noising(self, x_next: State, t: Step) -> Gaussian:
        (a, s), (a_next, s_next) = self._level(t), self._level(t - 1)
        return Gaussian(a / a_next * x_next, added(a, s, a_next, s_next).expand_as(x_next))

    def clean(self, x: State, t: Step, cond: Cond) -> Real:
        return self._clipped(self._guess(self.network(x, self.time[t], cond), x, t))

    def _guess(self, output: Tensor, x: State, t: Step) -> Real:
        return clean_from(output.to(x.dtype), self.prediction_type, x, *self._level(t))

    def _clipped(self, x_0: Real) -> Real:
        return x_0 if self.clip_sample is None else x_0.clamp(-self.clip_sample, self.clip_sample)

    def _level(self, t: Step) -> tuple[Tensor, Tensor]:
        return self._expand(self.alpha[t]), self._expand(self.sigma[t])

    def _expand(self, level: Tensor) -> Tensor:
        return level[(...,) + (None,) * len(self.shape)]


def clean_from(output: Real, prediction_type: PredictionType, x: State, a: Tensor, s: Tensor) -> Real:
    """x_0 from a network's output at x = a x_0 + s z."""
    if prediction_type == "epsilon":
        return (x - s * output) / a
    if prediction_type == "v_prediction":
        return (a * x - s * output) / (a**2 + s**2)
    if prediction_type == "flow_prediction":
        return (x - s * output) / (a + s)
    return output


def target_for(prediction_type: PredictionType, x_0: Real, z: Real, a: Tensor, s: Tensor) -> Real:
    """What a network of this kind should put out at x = a x_0 + s z: the inverse of `clean_from`."""
    targets = {"epsilon": z, "sample": x_0, "v_prediction": a * z - s * x_0, "flow_prediction": z - x_0}
    return cast(Real, targets[prediction_type])


def _check(schedule: NoiseSchedule, prediction_type: str) -> None:
    if prediction_type not in get_args(PredictionType):
        valid = ", ".join(get_args(PredictionType))
        raise ValueError(f"prediction_type must be one of {valid}, but got {prediction_type!r}")
    if prediction_type == "epsilon" and not schedule.alpha[-1] > 0:
        raise ValueError("an epsilon network cannot start at alpha = 0, where its output says nothing of x_0")
