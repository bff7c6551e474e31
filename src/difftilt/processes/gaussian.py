"""Gaussian denoising chains: DDPM, DDIM and flow matching are one formula on three grids.

With x_t = a x_0 + s z and the network's guesses x_0', z' at x_t, the chain draws

    x_{t-1} ~ N(a_next x_0' + sqrt(s_next^2 - std^2) z', std^2),
    std^2   = eta^2 s_next^2 (1 - (a s_next / (a_next s))^2),

the posterior of the noising process if eta = 1, and the ODE in the limit of eta to 0.
"""

from collections.abc import Callable
from typing import Literal, cast, get_args

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size
from difftilt.policy import Diffusion
from difftilt.processes.schedule import NoiseSchedule
from difftilt.shapes import Cond, PerSample, Real, Sample, State, Step
from difftilt.transition import Gaussian

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
VarianceType = Literal["fixed_small", "fixed_large"]
SHARP = 1e-4  # standard deviation of the posterior of a clean level, which has none


class GaussianPolicy(Diffusion):
    """DDIM (Song et al., 2021, Eq. 12). eta = 1 is DDPM; alpha = 1 - sigma is flow matching.

    Args:
        network: Maps (x_t, grid.time[t], cond) to what `prediction_type` says, in the shape of x_t.
        grid: Noise levels of the chain. sigma[0] > 0 unless the variance is `fixed_large`.
        shape: Shape of one state.
        eta: Share of the DDPM noise, in (0, 1].
        prediction_type: The network's output: `epsilon` z, `sample` x_0, `v_prediction` a z - s x_0,
            `flow_prediction` z - x_0.
        variance_type: `fixed_small` as above; `fixed_large`, the variance of q(x_t | x_{t-1}), needs eta = 1.
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
        grid: NoiseSchedule,
        shape: tuple[int, ...],
        *,
        eta: float = 1.0,
        prediction_type: PredictionType = "epsilon",
        variance_type: VarianceType = "fixed_small",
        decode: Callable[[State], Sample] = lambda x: x,
        tune_std: bool = False,
    ):
        super().__init__()
        _check(grid, eta, prediction_type, variance_type)
        self.network, self.shape, self.eta, self.steps = network, tuple(shape), eta, grid.steps
        self.prediction_type: PredictionType = prediction_type
        self.variance_type: VarianceType = variance_type
        self._decode = decode
        self.register_buffer("time", grid.time)
        self.register_buffer("alpha", grid.alpha)
        self.register_buffer("sigma", grid.sigma)
        log_std = torch.zeros_like(grid.sigma)
        if tune_std:
            self.log_std = nn.Parameter(log_std)
        else:
            self.register_buffer("log_std", log_std, persistent=False)

    def initial(self, cond: Cond) -> Gaussian:
        """N(0, alpha_T^2 + sigma_T^2): the noised law of data of unit variance, as diffusers starts."""
        batch = batch_size(cond)
        std = (self.alpha[-1] ** 2 + self.sigma[-1] ** 2).sqrt().expand(batch, *self.shape)
        return Gaussian(torch.zeros_like(std), std)

    def forward(self, x: State, t: Step, cond: Cond) -> Gaussian:
        x_0 = self._guess(self.network(x, self.time[t], cond), x, t)
        mean, std = self._reverse(x_0, x, t, self.eta)
        if self.variance_type == "fixed_large":
            std = self.noising(x, t).std
        return Gaussian(mean, (std * self._expand(self.log_std[t]).exp()).expand_as(mean))

    def posterior(self, x_0: State, x: State, t: Step) -> Gaussian:
        mean, std = self._reverse(x_0, x, t, 1.0)
        return Gaussian(mean, std.clamp(min=SHARP).expand_as(mean))

    def _reverse(self, x_0: Real, x: State, t: Step, eta: float) -> tuple[Real, Tensor]:
        """Mean and standard deviation of x_{t-1} given x_t and x_0."""
        (a, s), (a_next, s_next) = self._level(t), self._level(t - 1)
        std = eta * s_next * (1 - (a * s_next / (a_next * s)) ** 2).sqrt()
        return a_next * x_0 + (s_next**2 - std**2).clamp(min=0).sqrt() * (x - a * x_0) / s, std

    def decode(self, x: State) -> Sample:
        return self._decode(x)

    def noised(self, x_0: State, t: Step) -> Gaussian:
        a, s = self._level(t)
        return Gaussian(a * x_0, s.expand_as(x_0))

    def signal(self, t: Step) -> PerSample:
        return self.alpha[t]

    def noising(self, x_next: State, t: Step) -> Gaussian:
        (a, s), (a_next, s_next) = self._level(t), self._level(t - 1)
        std = (s**2 - (a / a_next * s_next) ** 2).sqrt()
        return Gaussian(a / a_next * x_next, std.expand_as(x_next))

    def clean(self, x: State, t: Step, cond: Cond) -> Real:
        return self._guess(self.network(x, self.time[t], cond), x, t)

    def _guess(self, output: Tensor, x: State, t: Step) -> Real:
        return clean_from(output.to(x.dtype), self.prediction_type, x, *self._level(t))

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


def _check(grid: NoiseSchedule, eta: float, prediction_type: str, variance_type: str) -> None:
    if not 0 < eta <= 1:
        raise ValueError(f"eta must be in (0, 1], but {eta} came; without noise a step has no density")
    for name, value, kind in (
        ("prediction_type", prediction_type, PredictionType),
        ("variance_type", variance_type, VarianceType),
    ):
        if value not in get_args(kind):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, but {value!r} came")
    if variance_type == "fixed_large" and eta != 1:
        raise ValueError(f"variance_type 'fixed_large' needs eta = 1, but {eta} came")
    if variance_type == "fixed_small" and not grid.sigma[0] > 0:
        raise ValueError(
            f"the grid ends at sigma[0] = {grid.sigma[0].item()}, which makes the last step deterministic;"
            " end it above 0, or use variance_type 'fixed_large'"
        )
    if prediction_type == "epsilon" and not grid.alpha[-1] > 0:
        raise ValueError("an epsilon network cannot start at alpha = 0, where its output says nothing of x_0")
