"""Jacobi diffusions of numbers in (0, 1): their noise at once, exactly, from a start at 0 or at 1.

With s = 2 / (1 + b), the diffusion

    dv = (s / 2) (1 - (1 + b) v) dt + sqrt(s v (1 - v)) dW

keeps Beta(1, b), and the mean of v falls to that of Beta(1, b) as exp(-t), whatever b. In the Jacobi
polynomials P_n = P_n^(0, b-1)(1 - 2 v) its density relative to Beta(1, b) is

    R(v | v_0) = sum_n (2 n + b) / b exp(-n (n + b) t / (1 + b)) P_n(v_0) P_n(v).

Everything is tabulated over the angle phi with v = sin^2(phi / 2), in which all v make steps of one size.

Source:
    Avdeyev et al. (2023, DDSM). https://arxiv.org/abs/2305.10699
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.shapes import Levels, PerSample, Points, Probs, Real, State
from difftilt.transition import Transition, event_sum, relative_entropy

CELLS = 256  # between 0 and 1, equal in phi
LOST = 1e6  # a sum with a rounding error above its 1e-6 th part is not trusted


@dataclass(frozen=True)
class Histogram(Transition):
    """Independent numbers in (0, 1), uniform within each of the cells between sin^2(pi j / 2 cells).

    Args:
        mass: Probability of each cell.
    """

    mass: Probs

    @torch.no_grad()
    def sample(self) -> State:
        return self.rsample()

    def rsample(self) -> State:
        """Draws by the inverse of the distribution function, which is differentiable in `mass`."""
        u, below = torch.rand_like(self.mass[..., :1]), self.mass.cumsum(-1)
        cell = (below[..., :-1] <= u).sum(-1, keepdim=True)
        inside = 1 - (below - u).gather(-1, cell) / self.mass.gather(-1, cell)
        edge = edges(self.mass.shape[-1]).to(self.mass)
        return torch.lerp(edge[cell], edge[cell + 1], inside.clamp(0, 1))[..., 0]

    def log_prob(self, x: State) -> PerSample:
        edge = edges(self.mass.shape[-1]).to(self.mass)
        cell = torch.searchsorted(edge[1:-1], x.to(edge).contiguous(), right=True)
        density = self.mass.gather(-1, cell[..., None])[..., 0] / edge.diff()[cell]
        return event_sum(torch.where((x >= 0) & (x <= 1), density, 0).log())

    def kl(self, other: "Histogram") -> PerSample:
        return event_sum(relative_entropy(self.mass, other.mass))

    def tempered(self, temperature: float) -> "Histogram":
        width = edges(self.mass.shape[-1]).diff().to(self.mass)
        return Histogram(((self.mass / width).log() / temperature + width.log()).softmax(-1))


@dataclass(frozen=True)
class Kernels:
    """R of one diffusion, for starts at 0 and at 1.

    Args:
        log_ratio: log R at the edges of the cells: (level, edge, start).
        slope: d log R / d phi there.
        mass: Probability of each cell: (level, start, cell).
    """

    log_ratio: Tensor
    slope: Tensor
    mass: Tensor


def angles(cells: int = CELLS) -> Points:
    """phi at the edges of the cells."""
    return torch.linspace(0, math.pi, cells + 1, dtype=torch.float64)


def edges(cells: int = CELLS) -> Points:
    """v at the edges of the cells."""
    return (angles(cells) / 2).sin().square()


def to_angle(v: Real) -> Real:
    """phi, with all digits near 0 and near 1."""
    return 2 * torch.atan2(v.sqrt(), (1 - v).sqrt())


def stationary(b: int) -> Points:
    """Probability of each cell under Beta(1, b)."""
    return -((angles() / 2).cos() ** (2 * b)).diff()


def kernels(b: int, time: Levels) -> Kernels:
    """The tables of R at some times, in float64. Terms are added until they no longer count.

    Beyond where float64 resolves R, at densities of less than about 1e-9 of the largest, log R goes on along
    the parabola -(1 + b) phi^2 / 4 t of all diffusions in short times.
    """
    n, weight = _weights(b, time)
    phi = angles()
    p, q = jacobi(0, b - 1, phi.cos(), len(n)), jacobi(1, b, phi.cos(), len(n) - 1)
    ratio, rounding = weight @ p, torch.finfo(p.dtype).eps * (weight.abs() @ p.abs())
    derivative = -(weight * (n + b))[..., 1:] @ q  # in v: P_n' = -(n + b) P_{n-1}^(1, b)
    left = (phi / 2).cos() ** (2 * b)
    moved = b * (phi / 2).sin().square() * left * ((weight[..., 1:] / n[1:]) @ q)
    mass = (1 - left + moved).diff().clamp(min=0)
    slope = phi.sin() / 2 * derivative / ratio
    spread = 2 * time / (1 + b)
    log_ratio, slope = _continued(ratio.log(), slope, ratio > LOST * rounding, spread)
    mass = mass / mass.sum(-1, keepdim=True)
    return Kernels(log_ratio.transpose(1, 2), slope.transpose(1, 2), mass)


def jacobi(alpha: int, beta: int, y: Points, count: int) -> Tensor:
    """P_0, ..., P_{count - 1} of the weight (1 - y)^alpha (1 + y)^beta, by their recurrence."""
    found = [torch.ones_like(y), alpha + 1 + (alpha + beta + 2) * (y - 1) / 2]
    for n in range(2, count):
        c = 2 * n + alpha + beta
        slant = (c - 1) * (c * (c - 2) * y + alpha**2 - beta**2)
        back = 2 * (n + alpha - 1) * (n + beta - 1) * c
        found.append((slant * found[-1] - back * found[-2]) / (2 * n * (n + alpha + beta) * (c - 2)))
    return torch.stack(found[:count])


def _weights(b: int, time: Levels) -> tuple[Tensor, Tensor]:
    """n, and the weight of P_n(v) in R: (level, start, n)."""
    n = torch.arange(20_000, dtype=torch.float64)
    at_one = torch.lgamma(n + b) - torch.lgamma(n + 1) - math.lgamma(b)  # log |P_n| at v_0 = 1
    decay = -n * (n + b) / (1 + b)
    size = (2 * n + b).log() + 2 * at_one + decay * time.min()
    count = int((size > size.max() - 45).nonzero().max()) + 1
    n, at_one, decay = n[:count], at_one[:count], decay[:count]
    start = torch.stack([torch.zeros_like(n), at_one])
    sign = torch.stack([torch.ones_like(n), (-1) ** n])
    return n, (2 * n + b) / b * sign * (start + decay * time[:, None, None]).exp()


def _continued(log_ratio: Tensor, slope: Tensor, resolved: Tensor, spread: Levels) -> tuple[Tensor, Tensor]:
    """log R and its slope, beyond the edges that are resolved with a second derivative of -1 / spread."""
    at_0, at_1 = resolved.long().unbind(1)
    kept = torch.stack([at_0.cumprod(-1), at_1.flip(-1).cumprod(-1).flip(-1)], 1)
    last = kept.sum(-1, keepdim=True) - 1
    last[:, 1] = resolved.shape[-1] - 1 - last[:, 1]
    away, spread = angles() - angles()[last], spread[:, None, None]
    tilt = slope.gather(-1, last)
    parabola = log_ratio.gather(-1, last) + tilt * away - away.square() / (2 * spread)
    return torch.where(kept > 0, log_ratio, parabola), torch.where(kept > 0, slope, tilt - away / spread)
