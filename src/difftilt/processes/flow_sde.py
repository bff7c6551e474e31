"""Flow matching sampled as an SDE of any noise level that keeps the flow's marginals.

With x_s = (1 - s) x_0 + s z and u = E[z - x_0 | x_s], the reverse SDE has the diffusion
g(s)^2 = a^2 s / (1 - s), where a is the noise level. Between two levels `exponential` holds the guesses
x_0' = x - s u and z' = x + (1 - s) u fixed and solves it exactly,

    x_{t-1} ~ N(a_next x_0' + s_next keep z', s_next^2 (1 - keep^2)),   keep = rho^(a^2 / 4),
    rho     = (a_t s_next / (a_next s_t))^2,   a_t = 1 - s_t;

a = sqrt 2 is the posterior of the noising process, and the ODE is the limit of a to 0. At s = 1 keep is 0 for
every a: the chain forgets x_T but for what x_0' has seen of it. `euler` is the step of Flow-GRPO,

    x_{t-1} ~ N(x + g^2 / (2 s) ds x + (1 + g^2 (1 - s) / (2 s)) ds u, g^2 |ds|),   ds = s_next - s < 0,

which remembers x_T, and keeps the marginals only as the steps become small.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import batch_size
from difftilt.policy import Diffusion
from difftilt.processes.schedule import NoiseSchedule
from difftilt.settings import Positive, check_value
from difftilt.shapes import Cond, PerSample, Real, Sample, State, Step
from difftilt.transition import Gaussian

Integrator = Literal["exponential", "euler"]
MEMORYLESS = 2**0.5  # Adjoint Matching's schedule, whose chain reverses the noising process


class FlowSDE(Diffusion):
    """A flow as a chain that can be tuned: its steps have densities.

    Args:
        network: Maps (x_t, grid.time[t], cond) to the velocity z - x_0, in the shape of x_t.
        grid: Noise levels with alpha = 1 - sigma and sigma[0] > 0, such as `grid.shifted_flow`.
        shape: Shape of one state.
        noise_level: a, above 0; `MEMORYLESS` (the default), or 0.7 as in Flow-GRPO.
        integrator: `exponential` or `euler`, as above.
        decode: Maps x_0 to what rewards score.
        tune_std: Make one factor on the standard deviation of each step a trainable parameter.

    Source:
        Domingo-Enrich et al. (2024), https://arxiv.org/abs/2409.08861, for the memoryless schedule;
        Liu et al. (2025), Eq. 9, https://arxiv.org/abs/2505.05470, for `euler`.
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
        noise_level: float = MEMORYLESS,
        integrator: Integrator = "exponential",
        decode: Callable[[State], Sample] = lambda x: x,
        tune_std: bool = False,
    ):
        super().__init__()
        _check(grid, noise_level, integrator)
        self.network, self.shape, self.steps = network, tuple(shape), grid.steps
        self.noise_level, self.integrator = noise_level, integrator
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
        """N(0, alpha_T^2 + sigma_T^2): the noised law of data of unit variance."""
        std = (self.alpha[-1] ** 2 + self.sigma[-1] ** 2).sqrt().expand(batch_size(cond), *self.shape)
        return Gaussian(torch.zeros_like(std), std)

    def forward(self, x: State, t: Step, cond: Cond) -> Gaussian:
        if self.integrator == "euler":
            mean, std = self._euler(self._velocity(x, t, cond), x, t)
        else:
            mean, std = self._exponential(self.clean(x, t, cond), x, t, self.noise_level)
        return Gaussian(mean, (std * self._expand(self.log_std[t]).exp()).expand_as(mean))

    def posterior(self, x_0: State, x: State, t: Step) -> Gaussian:
        mean, std = self._exponential(x_0, x, t, MEMORYLESS)
        return Gaussian(mean, std.expand_as(mean))

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
        _, s = self._level(t)
        return x - s * self._velocity(x, t, cond)

    def _velocity(self, x: State, t: Step, cond: Cond) -> Real:
        return self.network(x, self.time[t], cond).to(x.dtype)

    def _exponential(self, x_0: Real, x: State, t: Step, noise_level: float) -> tuple[Real, Tensor]:
        (a, s), (a_next, s_next) = self._level(t), self._level(t - 1)
        log_keep = noise_level**2 / 2 * (a * s_next / (a_next * s)).log()
        mean = a_next * x_0 + s_next * log_keep.exp() * (x - a * x_0) / s
        return mean, s_next * (-torch.expm1(2 * log_keep)).sqrt()  # free of cancellation in small steps

    def _euler(self, u: Real, x: State, t: Step) -> tuple[Real, Tensor]:
        (a, s), (a_next, s_next) = self._level(t), self._level(t - 1)
        ds = s_next - s
        # g is infinite at s = 1, where Flow-GRPO takes 1 - s of the next level
        variance = self.noise_level**2 * s / torch.where(a > 0, a, a_next)
        mean = x * (1 + variance / (2 * s) * ds) + u * (1 + variance * a / (2 * s)) * ds
        return mean, (-variance * ds).sqrt()

    def _level(self, t: Step) -> tuple[Tensor, Tensor]:
        return self._expand(self.alpha[t]), self._expand(self.sigma[t])

    def _expand(self, level: Tensor) -> Tensor:
        return level[(...,) + (None,) * len(self.shape)]


def _check(grid: NoiseSchedule, noise_level: float, integrator: str) -> None:
    check_value("noise_level", noise_level, Positive)
    check_value("integrator", integrator, Integrator)
    if not torch.allclose(grid.alpha + grid.sigma, torch.ones_like(grid.sigma)):
        raise ValueError(
            f"a flow needs a grid with alpha = 1 - sigma, but alpha {grid.alpha.tolist()} and sigma"
            f" {grid.sigma.tolist()} came; grid.shifted_flow makes one"
        )
    if not grid.sigma[0] > 0:
        raise ValueError(
            f"the grid ends at sigma[0] = {grid.sigma[0].item()}, which makes the last step deterministic;"
            " end it above 0"
        )
