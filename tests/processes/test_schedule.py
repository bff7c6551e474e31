"""Schedules equal diffusers'; levels are taken from alpha-bar and never recomputed from beta."""

from typing import Any

import pytest
import torch

from difftilt.processes.schedule import (
    NoiseSchedule,
    cosine,
    from_alpha_bar,
    from_betas,
    karras,
    linear,
    scaled_linear,
    shifted_flow,
)

ALL = [linear, scaled_linear, cosine, karras, lambda steps: shifted_flow(steps, 3.0)]
IDS = ["linear", "scaled_linear", "cosine", "karras", "shifted_flow"]


pytestmark = pytest.mark.usefixtures("double")


@pytest.mark.parametrize(
    ("ours", "name", "settings"),
    [
        (linear, "linear", {}),
        (scaled_linear, "scaled_linear", {"beta_start": 0.00085, "beta_end": 0.012}),
        (cosine, "squaredcos_cap_v2", {}),
    ],
)
def test_training_schedules_are_those_of_diffusers(ours, name, settings):
    diffusers: Any = pytest.importorskip("diffusers")
    betas = diffusers.DDPMScheduler(beta_schedule=name, **settings).betas.double()
    expected = from_betas(betas)
    grid = ours(999)
    torch.testing.assert_close(grid.alpha, expected.alpha[1:], rtol=0, atol=2e-7)  # theirs are in float32
    torch.testing.assert_close(grid.sigma, expected.sigma[1:], rtol=0, atol=2e-5)
    assert grid.time.equal(torch.arange(1000))


def test_karras_sigmas_are_those_of_diffusers():
    diffusers: Any = pytest.importorskip("diffusers")
    edm = diffusers.EDMEulerScheduler()
    edm.set_timesteps(12)
    torch.testing.assert_close(karras(11).sigma, edm.sigmas[:-1].flip(0).double(), rtol=1e-6, atol=0)
    euler = diffusers.EulerDiscreteScheduler(use_karras_sigmas=True)
    euler.set_timesteps(12)
    theirs = euler.sigmas[:-1].flip(0).double()
    ours = karras(11, sigma_min=theirs[0].item(), sigma_max=theirs[-1].item())
    torch.testing.assert_close(ours.sigma, theirs, rtol=1e-5, atol=0)


def test_shifted_flow_sigmas_are_those_of_diffusers():
    diffusers: Any = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    times = torch.linspace(1, 1000, 1000)  # of its training grid: 1000 s, shifted
    grid = shifted_flow(999, 3.0)
    torch.testing.assert_close(grid.sigma.flip(0), scheduler.sigmas.double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(grid.time.flip(0), scheduler.timesteps.double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(shifted_flow(999).time, times)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20, 50])
@pytest.mark.parametrize("make", ALL, ids=IDS)
def test_few_steps_stay_finite(make, steps):
    """A linear schedule rescaled by 1000 / T has beta > 1 for T <= 20; levels of alpha-bar do not."""
    grid = make(steps)
    assert grid.steps == steps
    assert grid.alpha.isfinite().all() and grid.sigma.isfinite().all() and grid.sigma[0] > 0
    a, s = grid.alpha[1:], grid.sigma[1:]
    share = 1 - (a * grid.sigma[:-1] / (grid.alpha[:-1] * s)) ** 2
    assert ((share > 0) & (share <= 1)).all()
    if make is linear and 1 < steps <= 20:
        assert (torch.linspace(1e-4, 0.02, steps) * 1000 / steps).max() >= 1  # what is avoided


@pytest.mark.parametrize("make", ALL, ids=IDS)
def test_the_ends_are_kept(make):
    few, many = make(7), make(999)
    for name in ("time", "alpha", "sigma"):
        ends = torch.tensor([0, -1])
        torch.testing.assert_close(getattr(few, name)[ends], getattr(many, name)[ends])


@pytest.mark.parametrize("make", ALL[:3], ids=IDS[:3])
def test_respacing_takes_levels_and_changes_none(make):
    whole = make(999)
    grid = whole.respace(10)
    rows = grid.time
    assert grid.alpha.equal(whole.alpha[rows]) and grid.sigma.equal(whole.sigma[rows])
    assert (rows.diff() - 99.9).abs().max() < 1
    torch.testing.assert_close(grid.alpha**2 + grid.sigma**2, torch.ones(11))


def test_betas_start_from_clean_data():
    betas = torch.tensor([0.1, 0.2, 0.5])
    grid = from_betas(betas)
    torch.testing.assert_close(grid.alpha**2, torch.tensor([1.0, 0.9, 0.72, 0.36]))
    assert grid.sigma[0] == 0 and grid.time.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("steps", [0, 1000, -1])
def test_a_step_count_out_of_range_is_refused(steps):
    with pytest.raises(ValueError, match=f"can be respaced to 1 to 999, not to {steps}"):
        linear(steps)


@pytest.mark.parametrize("alpha_bar", [[0.5], [0.5, 0.5], [0.1, 0.9], [0.9, float("nan")]])
def test_levels_in_the_wrong_order_are_refused(alpha_bar):
    with pytest.raises(ValueError, match=r"needs two or more levels whose sigma / alpha increases, but"):
        from_alpha_bar(torch.tensor(alpha_bar))
    with pytest.raises(ValueError, match="increases"):
        NoiseSchedule(torch.zeros(2), torch.ones(2), torch.tensor([0.2, 0.1]))
