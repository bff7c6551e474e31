"""Gaussian chains take the steps of diffusers' schedulers, in float64."""

import inspect
import math
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

from difftilt.conditions import unconditional
from difftilt.exact.toy import gmm_schedule
from difftilt.policy import rollout
from difftilt.processes.gaussian import GaussianPolicy, PredictionType, clean_from, target_for
from difftilt.processes.noise import DDIM, FixedLarge
from difftilt.processes.schedule import (
    NoiseSchedule,
    from_alpha_bar,
    from_betas,
    karras,
    linear,
    shifted_flow,
)
from difftilt.shapes import Cond
from difftilt.transition import Gaussian

diffusers: Any = pytest.importorskip("diffusers")
PREDICTIONS: list[PredictionType] = ["epsilon", "sample", "v_prediction"]
SHAPE = (2, 3)


pytestmark = pytest.mark.usefixtures("double")


GRIDS = {"vp": linear, "flow": lambda steps: shifted_flow(steps, 3.0), "ve": karras}


class Network(nn.Module):
    """Any smooth function of (x, time); it also records what it was told."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        self.seen.append(time)
        return (self.weight * x + time.double()[:, None, None] / 300).sin()


def in_double(scheduler: Any) -> Any:
    """diffusers computes its schedules in float32: the same constants, with the arithmetic in float64."""
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if name in vars(scheduler):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def grid_of(scheduler: Any) -> NoiseSchedule:
    """The scheduler's timesteps, with one level below the last: 0, or clean data."""
    time = scheduler.timesteps.flip(0)
    below = scheduler.final_alpha_cumprod if "final_alpha_cumprod" in vars(scheduler) else scheduler.one
    alpha_bar = torch.cat([below[None], scheduler.alphas_cumprod[time]])
    return from_alpha_bar(alpha_bar, torch.cat([torch.zeros(1, dtype=torch.long), time]))


def law_of(scheduler: Any, output: Tensor, time: Tensor, x: Tensor, **settings: Any) -> Gaussian:
    """Mean and standard deviation of a scheduler's step, from the noise it adds: z = 0 and z = 1."""
    ends = []
    for z in (0.0, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                f"{scheduler.__module__}.randn_tensor", lambda shape, z=z, **_: torch.full(shape, z)
            )
            patch.setattr(scheduler, "_step_index", None, raising=False)  # a step counts itself
            ends.append(scheduler.step(output, time, x, **settings).prev_sample)
    return Gaussian(ends[0], ends[1] - ends[0])


def assert_steps_agree(policy: GaussianPolicy, scheduler: Any, last: int = 1, **settings: Any) -> None:
    """At every step from T to `last`, along a path of the chain."""
    x, cond = torch.randn(4, *SHAPE), unconditional(4)
    assert policy.steps == len(scheduler.timesteps)
    for t, time in zip(range(policy.steps, last - 1, -1), scheduler.timesteps, strict=False):
        with torch.no_grad():
            step = policy(x, torch.full((4,), t), cond)
            output = policy.network(x, time.expand(4), cond)
        own = law_of(scheduler, output, time, x, **settings)
        torch.testing.assert_close(step.mean, own.mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(step.std, own.std, rtol=0, atol=1e-10)
        x = step.sample()


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm(prediction_type, variance_type, spacing):
    scheduler = in_double(
        diffusers.DDPMScheduler(
            prediction_type=prediction_type,
            variance_type=variance_type,
            timestep_spacing=spacing,
            clip_sample=False,
        )
    )
    scheduler.set_timesteps(7)
    grid = grid_of(scheduler)
    if variance_type == "fixed_small":  # the last step of diffusers' adds no noise: here the grid ends above
        sigma = grid.sigma.clone()
        grid = NoiseSchedule(grid.time, grid.alpha, sigma.clamp(min=1e-12))
    noise = {"fixed_small": DDIM(), "fixed_large": FixedLarge()}[variance_type]
    chain = GaussianPolicy(Network(), grid, SHAPE, noise=noise, prediction_type=prediction_type)
    assert_steps_agree(chain, scheduler, last=2)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.05])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(prediction_type, eta, spacing):
    scheduler = diffusers.DDIMScheduler(
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        beta_schedule="scaled_linear",
    )
    in_double(scheduler).set_timesteps(8)
    chain = GaussianPolicy(
        Network(), grid_of(scheduler), SHAPE, noise=DDIM(eta), prediction_type=prediction_type
    )
    assert_steps_agree(chain, scheduler, eta=eta)


@pytest.mark.parametrize("steps", [8, 7])
def test_ddim_with_linear_spacing_step_by_step(steps):
    """DDIMScheduler steps down by 1000 // steps whatever its next timestep is: each step has its own grid."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="linspace", clip_sample=False)
    in_double(scheduler).set_timesteps(steps)
    for time in scheduler.timesteps[:-1]:
        pair = torch.stack([time - 1000 // steps, time])
        grid = from_alpha_bar(scheduler.alphas_cumprod[pair], pair)
        x = torch.randn(4, *SHAPE)
        chain = GaussianPolicy(Network(), grid, SHAPE, noise=DDIM(0.7))
        step = chain(x, torch.ones(4, dtype=torch.long), unconditional(4))
        output = chain.network(x, time.expand(4), {})
        own = law_of(scheduler, output, time, x, eta=0.7)
        torch.testing.assert_close(step.mean, own.mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(step.std, own.std, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_tends_to_the_euler_step(shift):
    """The distance to FlowMatchEulerDiscreteScheduler falls as eta^2, and its noise as eta."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(8)
    scheduler.sigmas = scheduler.sigmas.double()
    sigma = scheduler.sigmas[:-1].flip(0)
    grid = NoiseSchedule(scheduler.timesteps.flip(0), 1 - sigma, sigma)
    x, cond = torch.randn(4, *SHAPE), unconditional(4)
    errors = []
    for eta in (0.1, 0.01):
        chain = GaussianPolicy(Network(), grid, SHAPE, noise=DDIM(eta), prediction_type="flow_prediction")
        scheduler._step_index, error = None, 0.0
        for t, time in zip(range(7, 0, -1), scheduler.timesteps, strict=False):
            step = chain(x, torch.full((4,), t), cond)
            own = scheduler.step(chain.network(x, time.expand(4), cond), time, x).prev_sample
            error = max(error, (step.mean - own).abs().max().item())
            torch.testing.assert_close(step.std / eta, step.std[0, 0, 0].expand_as(step.std) / eta)
            assert step.std.max() <= eta
        errors.append(error)
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.02)
    assert errors[1] < 2e-4


def test_variance_exploding_chains_are_ancestral_euler():
    """EulerAncestralDiscreteScheduler, which computes in float32, is eta = 1 with alpha = 1."""
    scheduler = diffusers.EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(8)
    sigma = scheduler.sigmas.double()
    scheduler.sigmas = sigma
    levels = sigma[:-1].flip(0)
    chain = GaussianPolicy(
        Network(), NoiseSchedule(scheduler.timesteps.flip(0), torch.ones(8), levels), SHAPE
    )
    x = 10 * torch.randn(4, *SHAPE)
    for t, time in zip(range(7, 0, -1), scheduler.timesteps, strict=False):
        step = chain(x, torch.full((4,), t), unconditional(4))
        scheduler.is_scale_input_called = True  # or it warns
        own = law_of(scheduler, chain.network(x, time.expand(4), {}), time, x)
        torch.testing.assert_close(step.mean, own.mean, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(step.std, own.std, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("prediction_type", [*PREDICTIONS, "flow_prediction"])
def test_every_prediction_gives_back_clean_data(kind, prediction_type):
    grid = GRIDS[kind](5)
    x_0, z = torch.randn(4, 3), torch.randn(4, 3)
    for a, s in zip(grid.alpha, grid.sigma, strict=True):
        if a > 0 or prediction_type != "epsilon":
            target = target_for(prediction_type, x_0, z, a, s)
            clean = clean_from(target, prediction_type, a * x_0 + s * z, a, s)
            torch.testing.assert_close(clean, x_0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", GRIDS)
@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_a_perfect_network_keeps_the_marginals(kind, eta):
    """With x_0 known, a chain that starts at q(x_T | x_0) passes through q(x_t | x_0), for any eta.

    The mean and variance are exact: both are read off an affine step.
    """
    x_0 = torch.full((1, *SHAPE), 1.3)

    class Perfect(nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
            return x_0.expand_as(x)

    chain = GaussianPolicy(Perfect(), GRIDS[kind](6), SHAPE, noise=DDIM(eta), prediction_type="sample")
    mean, variance = chain.alpha[-1] * x_0, chain.sigma[-1] ** 2
    for t in range(6, 0, -1):
        at = torch.tensor([t])
        step = chain(mean, at, unconditional(1))
        slope = (chain(mean + 1, at, unconditional(1)).mean - step.mean)[0, 0, 0]
        mean, variance = step.mean, slope**2 * variance + step.std[0, 0, 0] ** 2
        torch.testing.assert_close(mean, chain.alpha[t - 1] * x_0, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(variance, chain.sigma[t - 1] ** 2, rtol=1e-8, atol=1e-10)


def test_the_noising_steps_compose_to_the_corruption():
    """q(x_1 | x_0) ... q(x_t | x_{t-1}) has the moments of q(x_t | x_0), if x_0 is level 0 of the grid."""
    grid = gmm_schedule(6)
    chain = GaussianPolicy(nn.Identity(), grid, (1,), noise=FixedLarge())
    mean, variance = torch.ones(1, 1), torch.zeros(1, 1)
    for t in range(1, 7):
        law = chain.noising(mean, torch.tensor([t]))
        scale = chain.noising(torch.ones(1, 1), torch.tensor([t])).mean
        mean, variance = law.mean, scale**2 * variance + law.std**2
    torch.testing.assert_close(mean, grid.alpha[-1].view(1, 1))
    torch.testing.assert_close(variance.sqrt(), grid.sigma[-1].view(1, 1))


def test_corruption_has_the_grids_moments():
    chain = GaussianPolicy(Network(), linear(6), SHAPE)
    x = chain.corrupt(torch.full((20_000, *SHAPE), 2.0), torch.full((20_000,), 4))
    assert x.mean().item() == pytest.approx(2 * chain.alpha[4].item(), abs=4 / 120_000**0.5)
    assert x.std().item() == pytest.approx(chain.sigma[4].item(), abs=4 / 120_000**0.5)


def test_the_law_of_the_start_is_that_of_noised_data_of_unit_variance():
    start = GaussianPolicy(Network(), karras(5), SHAPE).initial(unconditional(3))
    assert start.mean.eq(0).all() and start.mean.shape == (3, *SHAPE)
    torch.testing.assert_close(start.std, torch.full((3, *SHAPE), (1 + 80.0**2) ** 0.5))


def test_tuned_deviations_are_counted_in_the_kl_and_in_the_gradient():
    frozen = GaussianPolicy(Network(), linear(5), SHAPE)
    chain = GaussianPolicy(Network(), linear(5), SHAPE, tune_std=True)
    assert [name for name, _ in chain.named_parameters()] == ["log_std", "network.weight"]
    x, t = torch.randn(5, *SHAPE), torch.arange(1, 6)
    cond = unconditional(5)
    assert chain(x, t, cond).kl(frozen(x, t, cond)).eq(0).all()
    with torch.no_grad():
        chain.log_std += 0.1
    kl = chain(x, t, cond).kl(frozen(x, t, cond))
    torch.testing.assert_close(kl, torch.full((5,), 6 * (math.exp(0.2) / 2 - 0.5 - 0.1)))
    kl.sum().backward()
    assert chain.log_std.grad is not None and chain.log_std.grad[1:].gt(0).all()


def test_the_network_is_told_the_grids_own_time():
    network = Network()
    grid = linear(10).respace(4)
    rollout(GaussianPolicy(network, grid, SHAPE), unconditional(2))
    assert [time.tolist() for time in network.seen] == [[t, t] for t in grid.time.tolist()[:0:-1]]


def test_half_precision_networks_give_float32_laws():
    torch.set_default_dtype(torch.float32)

    class Half(nn.Module):
        def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
            return x.bfloat16().sin()

    chain = GaussianPolicy(Half(), linear(5), SHAPE)
    step = chain(torch.randn(3, *SHAPE), torch.tensor([5, 3, 1]), unconditional(3))
    assert step.mean.dtype == step.std.dtype == torch.float32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction_type": "noise"}, "prediction_type must be one of epsilon, sample, v_prediction"),
        ({"clip_sample": 0.0}, "clip_sample must be > 0, but got 0.0"),
    ],
)
def test_settings_without_a_density_are_refused(settings, message):
    build = inspect.unwrap(GaussianPolicy.__init__)  # without the types that these tests check
    with pytest.raises(ValueError) as caught:
        build(GaussianPolicy.__new__(GaussianPolicy), Network(), linear(5), SHAPE, **settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_deterministic_steps_are_refused():
    clean = from_betas(torch.full((5,), 0.1))
    with pytest.raises(
        ValueError, match=r"sigma\[0\] = 0.0, which makes the last step deterministic; end it"
    ):
        GaussianPolicy(Network(), clean, SHAPE)
    with pytest.raises(ValueError, match="cannot start at alpha = 0"):
        GaussianPolicy(Network(), shifted_flow(5), SHAPE)
    GaussianPolicy(Network(), clean, SHAPE, noise=FixedLarge())
