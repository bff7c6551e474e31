"""The kernel of the Jacobi diffusion against quadrature, the Fokker-Planck equation and its limits."""

import math

import pytest
import torch
from torch import Tensor

from difftilt.processes.jacobi import CELLS, angles, edges, kernels, stationary, to_angle

F64 = torch.float64
TIME = torch.tensor([0.02, 0.1, 0.4, 1.5], dtype=F64)


def numbers(*times: float) -> Tensor:
    return torch.tensor(times, dtype=F64)


def beta_density(b: int, v: Tensor) -> Tensor:
    return b * (1 - v) ** (b - 1)


def simpson(values: Tensor) -> Tensor:
    """An integral over phi from its values at the edges of the cells."""
    weight = torch.ones(CELLS + 1, dtype=F64)
    weight[1:-1:2], weight[2:-1:2] = 4, 2
    return values @ weight * math.pi / CELLS / 3


@pytest.mark.parametrize("b", [1, 2, 3, 19])
def test_the_kernel_is_a_law_with_the_mean_of_its_diffusion(b):
    """Integrals over phi of R Beta(1, b) and v R Beta(1, b): 1, and a mean that falls as exp(-t)."""
    time = TIME if b < 19 else TIME[1:]
    v, table, rest = edges(), kernels(b, time), 1 / (1 + b)
    density = table.log_ratio.exp() * (beta_density(b, v) * angles().sin() / 2)[:, None]
    for start in (0, 1):
        at = density[..., start]
        assert simpson(at).sub(1).abs().max() < 1e-5
        assert (simpson(v * at) - rest - (start - rest) * (-time).exp()).abs().max() < 1e-5
        pair = (at[:, :-2:2] + 4 * at[:, 1:-1:2] + at[:, 2::2]) * math.pi / CELLS / 3
        assert (pair - table.mass[:, start].unflatten(-1, (-1, 2)).sum(-1)).abs().max() < 2e-4 * pair.max()
        assert table.mass[:, start].sum(-1).sub(1).abs().max() < 1e-12


def finite_volumes(b: int, time: float, start: int, cells: int) -> Tensor:
    """The Fokker-Planck equation dp/dt = d/dv (g^2 / 2 beta d/dv (p / beta)) on cells equal in phi."""
    v = edges(cells)
    middle = (angles(cells)[1:] + angles(cells)[:-1]) / 2
    mass = (1 - v[:-1]) ** b - (1 - v[1:]) ** b
    inner, centre = v[1:-1], (middle / 2).sin().square()
    flux = inner * (1 - inner) / (1 + b) * beta_density(b, inner) / centre.diff()
    rates = torch.diag(flux / mass[:-1], 1) + torch.diag(flux / mass[1:], -1)
    rates = rates - torch.diag(rates.sum(1))
    return torch.matrix_exp(time * rates)[-1 if start else 0]


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("start", [0, 1])
def test_the_kernel_solves_the_fokker_planck_equation(b, start):
    """The difference is that of the cells alone: it falls as their number grows."""
    table, number = kernels(b, TIME), 2
    exact = table.mass[number, start].view(16, -1).sum(1)
    error = {}
    for cells in (64, 128):
        found = finite_volumes(b, TIME[number].item(), start, cells).view(16, -1).sum(1)
        error[cells] = (found - exact).abs().sum().item()
    assert error[128] < 0.6 * error[64]
    assert error[128] < 0.005
    other = table.mass[number - 1, start].view(16, -1).sum(1)  # of another time
    assert (found - other).abs().sum() > 0.2


@pytest.mark.parametrize("b", [1, 3, 19])
def test_the_slope_is_that_of_the_density(b):
    """Central differences of log R, wherever the start may be; near the least times R spans 700 nats."""
    phi, table = angles(), kernels(b, torch.cat([numbers(0.005), TIME]))
    width = phi[1].item()
    found = (table.log_ratio[:, 2:] - table.log_ratio[:, :-2]) / (2 * width)
    scale = 1 + table.slope[:, 1:-1].abs()
    assert ((found - table.slope[:, 1:-1]) / scale).abs().max() < 2e-2
    seen = table.log_ratio > table.log_ratio.amax(1, keepdim=True) - 20
    errors = ((found - table.slope[:, 1:-1]) / scale)[seen[:, 1:-1]]
    assert errors.abs().max() < 1e-3
    assert table.slope.abs().max() > 10


def test_beyond_what_numbers_resolve_the_kernel_falls_as_a_diffusion_does():
    """log R = -phi^2 / (2 s t) + O(log t), Varadhan's distribution, where R is e^-600 of its largest."""
    time = numbers(0.0075, 0.01)
    table = kernels(1, time)
    fall = table.log_ratio[:, CELLS * 3 // 4, 0] - table.log_ratio[:, 0, 0]
    assert (fall * 2 * time / (0.75 * math.pi) ** 2).add(1).abs().max() < 0.03
    assert fall[0] < -350


@pytest.mark.parametrize("b", [1, 3])
def test_in_the_long_run_only_the_beta_law_is_left(b):
    table = kernels(b, numbers(1.0, 4.0, 20.0))
    away = (table.mass - stationary(b)).abs().sum(-1) / 2
    assert away[2].max() < 1e-7
    assert away[1].max() < 0.06
    assert away[0].min() > 0.1
    assert table.slope[2].abs().max() < 1e-7


def test_angles_keep_all_digits_at_both_ends():
    assert to_angle(numbers(0.0, 0.5, 1.0)).tolist() == pytest.approx([0, math.pi / 2, math.pi])
    assert to_angle(numbers(1e-12)).item() == pytest.approx(2e-6, rel=1e-9)
    assert math.pi - to_angle(1 - numbers(2**-40)).item() == pytest.approx(2 * 2**-20, rel=1e-6)
