"""How much of its noise a Gaussian step keeps, and how much it draws anew.

With x_t = a x_0 + s z, a step to the level a_next, s_next draws

    x_{t-1} ~ N(a_next x_0' + kept z', std^2),

where x_0' and z' are the network's guesses at x_t. Where kept^2 + std^2 = s_next^2, a chain whose guesses are
right keeps the marginals of the noising process, whatever its noise.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.processes.schedule import NoiseSchedule
from difftilt.settings import Positive, check_settings

MEMORYLESS = 2**0.5  # Adjoint Matching's noise level, whose chain reverses the noising process


class Noise(ABC):
    """The noise of a Gaussian chain's steps."""

    def check(self, schedule: NoiseSchedule) -> None:
        """Raises ValueError if a step between these levels would have no density."""
        if not schedule.sigma[0] > 0:
            raise ValueError(
                f"the schedule ends at sigma[0] = {schedule.sigma[0].item()}, which makes the last step"
                " deterministic; end it above 0, or use noise=FixedLarge()"
            )

    @abstractmethod
    def split(self, a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
        """kept and std of a step between two levels, as above."""


@dataclass(frozen=True)
class DDIM(Noise):
    """A share of the posterior's standard deviation: eta = 1 is DDPM, and the ODE is the limit of eta to 0.

        std^2 = eta^2 s_next^2 (1 - (a s_next / (a_next s))^2)

    Args:
        eta: The share, in (0, 1].

    Source:
        Song et al. (2021), Eq. 12. https://arxiv.org/abs/2010.02502
    """

    eta: float = 1.0

    def __post_init__(self):
        if not 0 < self.eta <= 1:
            raise ValueError(
                f"eta must be in (0, 1], but got {self.eta}; without noise a step has no density"
            )

    def split(self, a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
        std = self.eta * s_next * (1 - (a * s_next / (a_next * s)) ** 2).sqrt()
        return (s_next**2 - std**2).clamp(min=0).sqrt(), std


DDPM = DDIM()


@dataclass(frozen=True)
class FixedLarge(Noise):
    """DDPM's means with the variance of q(x_t | x_{t-1}), so that the schedule may end at clean data."""

    def check(self, schedule: NoiseSchedule) -> None:
        """Every step has a density."""

    def split(self, a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
        return DDPM.split(a, s, a_next, s_next)[0], added(a, s, a_next, s_next)


@dataclass(frozen=True)
class FlowSDE(Noise):
    """The reverse SDE of diffusion g^2 = level^2 s^2 d log(s / a), solved exactly while x_0' and z' are held.

        std^2 = s_next^2 (1 - rho^(level^2 / 2)),   rho = (a s_next / (a_next s))^2

    For a flow, a = 1 - s, this is g^2 = level^2 s / (1 - s). From pure noise, a = 0, all of the noise is new:
    the chain forgets x_T but for what x_0' has seen of it.

    Args:
        noise_level: Above 0; `MEMORYLESS` (the default) is DDPM, and the ODE is the limit to 0.

    Source:
        Domingo-Enrich et al. (2025). https://arxiv.org/abs/2409.08861
    """

    noise_level: Positive = MEMORYLESS

    def __post_init__(self):
        check_settings(self)

    def split(self, a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
        log_keep = self.noise_level**2 / 2 * (a * s_next / (a_next * s)).log()
        # expm1 is free of cancellation in small steps
        return s_next * log_keep.exp(), s_next * (-torch.expm1(2 * log_keep)).sqrt()


@dataclass(frozen=True)
class Euler(Noise):
    """The Euler step of `FlowSDE`, which Flow-GRPO takes; for flows, a = 1 - s.

        std^2 = g^2 (s - s_next),   kept = s_next - std^2 / (2 s),   g^2 = level^2 s / (1 - s)

    It remembers x_T, and keeps the marginals only as the steps become small.

    Args:
        noise_level: Above 0; 0.7 in Flow-GRPO.

    Source:
        Liu et al. (2025), Eq. 9. https://arxiv.org/abs/2505.05470
    """

    noise_level: Positive = 0.7

    def __post_init__(self):
        check_settings(self)

    def check(self, schedule: NoiseSchedule) -> None:
        super().check(schedule)
        if not torch.allclose(schedule.alpha + schedule.sigma, torch.ones_like(schedule.sigma)):
            raise ValueError(
                "Euler noise needs a flow's schedule, alpha = 1 - sigma, but got alpha"
                f" {schedule.alpha.tolist()} and sigma {schedule.sigma.tolist()}; schedule.shifted_flow makes"
                " one"
            )

    def split(self, a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor) -> tuple[Tensor, Tensor]:
        # g is infinite at s = 1, where Flow-GRPO takes 1 - s of the next level
        variance = self.noise_level**2 * s / torch.where(a > 0, a, a_next) * (s - s_next)
        return s_next - variance / (2 * s), variance.sqrt()


def added(a: Tensor, s: Tensor, a_next: Tensor, s_next: Tensor) -> Tensor:
    """The standard deviation of q(x_t | x_{t-1})."""
    return (s**2 - (a / a_next * s_next) ** 2).sqrt()
