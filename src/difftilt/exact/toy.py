"""Small chains whose pretrained model is known in closed form."""

import math

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.processes.schedule import NoiseSchedule, from_betas
from difftilt.shapes import Cond, Levels, State


class MixtureDenoiser(nn.Module):
    """E[x_0 | x_t] where x_0 ~ sum_k weight_k N(mean_k, variance I): the perfect denoiser of a mixture.

    Args:
        schedule: Its alpha and sigma; the network is told the level's index.
        mean: One row per component.
        variance: Of every component in every direction, above 0.
        weight: Of the components; equal by default.
    """

    alpha: Tensor
    sigma: Tensor
    mean: Tensor
    log_weight: Tensor

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, variance: float, weight: Tensor | None = None):
        super().__init__()
        self.variance = variance
        weight = torch.ones(len(mean)) if weight is None else weight
        self.register_buffer("alpha", schedule.alpha)
        self.register_buffer("sigma", schedule.sigma)
        self.register_buffer("mean", mean.to(schedule.alpha))
        self.register_buffer("log_weight", (weight / weight.sum()).log().to(schedule.alpha))

    def forward(self, x: State, time: Tensor, cond: Cond) -> State:
        a, s = self.alpha[time][:, None, None], self.sigma[time][:, None, None]
        spread = a**2 * self.variance + s**2
        away = x[:, None] - a * self.mean  # (batch, component, dimension)
        log_post = self.log_weight - (away**2 / (2 * spread)).sum(2)
        clean = self.mean + a * self.variance / spread * away
        return (log_post.softmax(1)[..., None] * clean).sum(1)


class GaussianDenoiser(nn.Module):
    """E[x_0 | x_t] where x_0 ~ N(mean, cov): affine in x_t, so that the chain is linear-Gaussian.

    Args:
        schedule: Its alpha and sigma; the network is told the level's index.
        mean: Of the data.
        cov: Covariance matrix of the data.
    """

    alpha: Tensor
    mean: Tensor
    axes: Tensor
    gain: Tensor

    def __init__(self, schedule: NoiseSchedule, mean: Tensor, cov: Tensor):
        super().__init__()
        variances, axes = torch.linalg.eigh(cov.double())
        a, s = schedule.alpha.double()[:, None], schedule.sigma.double()[:, None]
        self.register_buffer("alpha", schedule.alpha)
        self.register_buffer("mean", mean.to(schedule.alpha))
        self.register_buffer("axes", axes.to(schedule.alpha))
        self.register_buffer("gain", (a * variances / (a**2 * variances + s**2)).to(schedule.alpha))

    def forward(self, x: State, time: Tensor, cond: Cond) -> State:
        away = x - self.alpha[time][:, None] * self.mean
        return self.mean + ((away @ self.axes) * self.gain[time]) @ self.axes.T


class Residual(nn.Module):
    """A denoiser to tune: a frozen base plus sigma_t^2 times an MLP that starts at zero.

    A tilt moves E[x_0 | x_t] by sigma_t^2 grad v_t / (alpha_t alpha), so the MLP has a target of one size.

    Args:
        base: Maps (x, time, cond) to E[x_0 | x_t]; its weights stay as they are.
        schedule: Its sigma; the network is told the level's index.
        dimension: Of a state.
        width: Units in each of two hidden layers.
        waves: How many octaves of sines of x and of the level the MLP sees.
    """

    variance: Tensor

    def __init__(
        self, base: nn.Module, schedule: NoiseSchedule, dimension: int, width: int = 64, waves: int = 3
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.steps, self.waves = schedule.steps, waves
        self.register_buffer("variance", schedule.sigma**2)
        last = nn.Linear(width, dimension)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        features = (1 + waves) * (dimension + 1)
        hidden = (nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.mlp = nn.Sequential(*hidden, last)

    def forward(self, x: State, time: Tensor, cond: Cond) -> State:
        level = time[:, None].to(x) / self.steps
        octaves = [2.0**k for k in range(self.waves)]
        waves = [torch.sin(k * x) for k in octaves] + [torch.sin(math.pi * k * level) for k in octaves]
        return self.base(x, time, cond) + self.variance[time][:, None] * self.mlp(
            torch.cat([x, level, *waves], 1)
        )


class AffineResidual(nn.Module):
    """A denoiser to tune that stays affine in x_t: a frozen base plus scale_t (W(t) x_t + b(t)).

    W and b are polynomials of the level, zero at first.

    Args:
        base: Maps (x, time, cond) to E[x_0 | x_t]; its weights stay as they are.
        scale: One number per level; the network is told the level's index.
        dimension: Of a state.
        terms: Of the polynomials, at least 1.
    """

    scale: Tensor
    powers: Tensor

    def __init__(self, base: nn.Module, scale: Levels, dimension: int, terms: int = 5):
        super().__init__()
        self.base = base.requires_grad_(False)
        level = torch.linspace(-1, 1, len(scale), dtype=torch.float64)
        chebyshev = torch.cos(torch.arange(terms) * level.clamp(-1, 1).acos()[:, None])
        self.register_buffer("scale", scale)
        self.register_buffer("powers", chebyshev.to(scale))
        self.linear = nn.Linear(dimension, terms * dimension)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: State, time: Tensor, cond: Cond) -> State:
        terms = self.linear(x).view(len(x), self.powers.shape[1], -1)
        shift = (self.powers[time][:, :, None] * terms).sum(1)
        return self.base(x, time, cond) + self.scale[time][:, None] * shift


class Velocity(nn.Module):
    """The flow z - x_0 of a denoiser, where alpha = 1 - sigma.

    Args:
        denoiser: Maps (x, time, cond) to E[x_0 | x_t], told the level's index.
        schedule: Its sigma.
    """

    sigma: Tensor

    def __init__(self, denoiser: nn.Module, schedule: NoiseSchedule):
        super().__init__()
        self.denoiser = denoiser
        self.register_buffer("sigma", schedule.sigma)

    def forward(self, x: State, time: Tensor, cond: Cond) -> State:
        return (x - self.denoiser(x, time, cond)) / self.sigma[time][:, None]


def gmm_schedule(steps: int = 50) -> NoiseSchedule:
    """The noise levels of the two-component mixture that the exact references are checked on."""
    return from_betas(torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 20)


def gmm(schedule: NoiseSchedule) -> MixtureDenoiser:
    """The perfect denoiser of 0.5 N(-2, 0.25) + 0.5 N(1, 0.25)."""
    return MixtureDenoiser(schedule, torch.tensor([[-2.0], [1.0]]), 0.25)
