"""Noise levels of a Gaussian chain: x_t = alpha_t x_0 + sigma_t z for t = 0 (clean), ..., T (noise)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.shapes import Levels, Times


@dataclass(frozen=True)
class NoiseSchedule:
    """T + 1 noise levels, the least noisy first.

    Args:
        time: What the network is told at each level.
        alpha: Scale of the data.
        sigma: Standard deviation of the noise, increasing relative to `alpha`.
    """

    time: Times
    alpha: Levels
    sigma: Levels

    def __post_init__(self):
        grows = self.sigma[1:] * self.alpha[:-1] > self.sigma[:-1] * self.alpha[1:]
        if len(self.alpha) < 2 or not bool(grows.all()):
            raise ValueError(
                "a schedule needs two or more levels whose sigma / alpha increases, but"
                f" got alpha {self.alpha.tolist()} and sigma {self.sigma.tolist()}"
            )

    @property
    def steps(self) -> int:
        """T, the number of transitions."""
        return len(self.alpha) - 1

    def take(self, level: Tensor) -> "NoiseSchedule":
        """The schedule of some of the levels, given in increasing order."""
        return NoiseSchedule(self.time[level], self.alpha[level], self.sigma[level])

    def respace(self, steps: int) -> "NoiseSchedule":
        """Keeps `steps` + 1 levels, evenly by index. Variances follow from alpha-bar, never from beta."""
        if not 1 <= steps <= self.steps:
            raise ValueError(
                f"a schedule of {self.steps} steps can be respaced to 1 to {self.steps}, not to {steps}"
            )
        return self.take(torch.linspace(0, self.steps, steps + 1).round().long())


def from_betas(betas: Levels) -> NoiseSchedule:
    """A DDPM schedule with the clean level in front: `time` counts 0 (clean), 1, ..., T."""
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - betas.double()).cumprod(0)])
    return from_alpha_bar(alpha_bar)


def from_alpha_bar(alpha_bar: Levels, time: Tensor | None = None) -> NoiseSchedule:
    """A variance-preserving schedule: alpha^2 + sigma^2 = 1."""
    time = torch.arange(len(alpha_bar)) if time is None else time
    dtype = torch.get_default_dtype()
    return NoiseSchedule(time, alpha_bar.sqrt().to(dtype), (1 - alpha_bar).sqrt().to(dtype))


def linear(
    steps: int, beta_start: float = 1e-4, beta_end: float = 0.02, train_steps: int = 1000
) -> NoiseSchedule:
    """Ho et al. (2020). The network is told the index 0, ..., train_steps - 1 of its training level."""
    betas = torch.linspace(beta_start, beta_end, train_steps, dtype=torch.float64)
    return from_alpha_bar((1 - betas).cumprod(0)).respace(steps)


def scaled_linear(
    steps: int, beta_start: float = 0.00085, beta_end: float = 0.012, train_steps: int = 1000
) -> NoiseSchedule:
    """The latent-diffusion schedule: linear in the square root of beta."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, train_steps, dtype=torch.float64) ** 2
    return from_alpha_bar((1 - betas).cumprod(0)).respace(steps)


def cosine(steps: int, train_steps: int = 1000, max_beta: float = 0.999) -> NoiseSchedule:
    """Nichol and Dhariwal (2021); diffusers calls it squaredcos_cap_v2."""
    t = torch.arange(train_steps + 1, dtype=torch.float64) / train_steps
    alpha_bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)
    return from_alpha_bar((1 - betas).cumprod(0)).respace(steps)


def karras(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> NoiseSchedule:
    """Karras et al. (2022), Eq. 5: variance exploding, `alpha` = 1. The network is told sigma."""
    ramp = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigma = ((low + ramp * (high - low)) ** rho).to(torch.get_default_dtype())
    return NoiseSchedule(sigma, torch.ones_like(sigma), sigma)


def shifted_flow(
    steps: int, shift: float = 1.0, sigma_min: float = 1e-3, train_steps: int = 1000
) -> NoiseSchedule:
    """Flow matching (Esser et al., 2024): alpha = 1 - sigma, sigma moved towards noise by `shift`.

    The network is told train_steps * sigma, as in diffusers.
    """
    s = torch.linspace(sigma_min, 1, steps + 1, dtype=torch.float64)
    sigma = (shift * s / (1 + (shift - 1) * s)).to(torch.get_default_dtype())
    return NoiseSchedule(train_steps * sigma, 1 - sigma, sigma)
