"""Chains of diffusers' schedulers: all that a scheduler is told is honoured, or refused in one sentence."""

import copy
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch import Tensor

pytest.importorskip("diffusers")
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)

from difftilt.conditions import unconditional
from difftilt.domains.diffusers.scheduler import scheduler_chain, scheduler_schedule
from difftilt.policy import rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.shapes import Cond

SHAPE = (2, 3)


pytestmark = pytest.mark.usefixtures("double")


class Loud(nn.Module):
    """A network whose guesses of x_0 leave [-1, 1]."""

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return 4 * (0.7 * x + time.double()[:, None, None] / 300).sin()


def in_double(scheduler: Any) -> Any:
    """diffusers computes its schedules in float32: the same constants, with the arithmetic in float64."""
    for name in ("betas", "alphas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if name in vars(scheduler):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def drawn(scheduler: Any, output: Tensor, time: Tensor, x: Tensor, z: float, eta: float | None) -> Tensor:
    """What the scheduler's own step makes of the noise z."""
    settings = {} if eta is None else {"eta": eta}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{scheduler.__module__}.randn_tensor", lambda shape, **_: torch.full(shape, z))
        return scheduler.step(output, time, x, **settings).prev_sample


def assert_steps_are_its_own(
    chain: GaussianPolicy, scheduler: Any, timesteps: int, eta: float | None, last: int
) -> None:
    own = copy.deepcopy(scheduler)
    own.set_timesteps(timesteps)
    x, cond, clipped = torch.randn(4, *SHAPE), unconditional(4), 0
    for t, time in zip(range(chain.steps, last - 1, -1), own.timesteps, strict=False):
        step, output = chain(x, torch.full((4,), t), cond), chain.network(x, time.expand(4), cond)
        mean, shifted = (drawn(own, output, time, x, z, eta) for z in (0.0, 1.0))
        torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(step.std, shifted - mean, rtol=0, atol=1e-10)
        limit = chain.clip_sample or torch.inf
        clipped += int((chain.clean(x, torch.full((4,), t), cond).abs() == limit).sum())
        x = step.sample()
    assert (clipped > 0) == (chain.clip_sample is not None)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("limit", [None, 1.0, 0.6])
@pytest.mark.parametrize(
    ("kind", "settings", "eta"),
    [
        (DDPMScheduler, {"variance_type": "fixed_small"}, None),
        (DDPMScheduler, {"variance_type": "fixed_small_log"}, None),
        (DDPMScheduler, {"variance_type": "fixed_large"}, None),
        (DDIMScheduler, {"set_alpha_to_one": False}, 1.0),
        (DDIMScheduler, {"set_alpha_to_one": False}, 0.4),
    ],
    ids=["small", "small-log", "large", "ddim", "ddim-0.4"],
)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_every_step_is_the_schedulers_own(kind, settings, eta, spacing, limit, prediction):
    scheduler = in_double(
        kind(
            num_train_timesteps=100,
            prediction_type=prediction,
            clip_sample=limit is not None,
            clip_sample_range=limit or 1.0,
            timestep_spacing=spacing,
            **settings,
        )
    )
    chain = scheduler_chain(scheduler, Loud(), SHAPE, 10, eta or 1.0)
    assert chain.steps == 10
    clean = spacing == "trailing" and kind is DDPMScheduler  # the scheduler's last step goes to clean data
    assert_steps_are_its_own(chain, scheduler, 10 + (spacing == "leading"), eta, last=1 + clean)


def test_a_chain_that_clips_draws_what_the_scheduler_draws():
    """Guesses beyond the range make another distribution, and the one of the scheduler is drawn."""
    torch.set_default_dtype(torch.float32)
    scheduler = DDPMScheduler(num_train_timesteps=100, prediction_type="sample")
    spread = {}
    for clip in (True, False):
        own: Any = DDPMScheduler.from_config(scheduler.config, clip_sample=clip)
        chain = scheduler_chain(own, Loud(), SHAPE, 20)
        ours = rollout(chain, unconditional(4000)).sample
        own.set_timesteps(21)
        x = torch.randn(4000, *SHAPE)
        for time in own.timesteps[:-1]:
            x = own.step(Loud()(x, time.expand(4000), {}), int(time), x).prev_sample
        assert ours.std().item() == pytest.approx(x.std().item(), rel=0.05)
        spread[clip] = ours.std().item()
    assert spread[False] > 1.3 * spread[True]


@pytest.mark.parametrize(
    ("own", "extra"),
    [
        (DDIMScheduler(timestep_spacing="trailing"), 0),
        (DDIMScheduler(timestep_spacing="leading"), 1),
        (PNDMScheduler(skip_prk_steps=True, steps_offset=1), 0),
        (EulerDiscreteScheduler(use_karras_sigmas=True), 1),
        (DPMSolverMultistepScheduler(), 1),
        (EDMEulerScheduler(), 1),
        (FlowMatchEulerDiscreteScheduler(shift=3.0), 1),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("steps", [1, 8, 50])
def test_any_schedule_has_the_schedulers_timesteps_and_as_many_steps_as_asked(own, extra, steps):
    before = repr(vars(own))
    schedule = scheduler_schedule(own, steps)
    assert repr(vars(own)) == before
    own = copy.deepcopy(own)
    own.set_timesteps(steps + extra)
    times = own.timesteps.double().flip(0).unique_consecutive()
    torch.testing.assert_close(schedule.time.double()[-len(times) :], times)
    assert schedule.sigma[0] > 0 and schedule.steps == steps


@pytest.mark.parametrize(
    ("kind", "settings", "eta", "message"),
    [
        (DDPMScheduler, {"thresholding": True}, 1.0, "DDPMScheduler with thresholding=True clips"),
        (DDIMScheduler, {"thresholding": True}, 1.0, "DDIMScheduler with thresholding=True clips"),
        (DDPMScheduler, {"variance_type": "learned"}, 1.0, "variance_type 'learned' has variances"),
        (DDPMScheduler, {"variance_type": "learned_range"}, 1.0, "variance_type 'learned_range' has"),
        (DDPMScheduler, {"variance_type": "fixed_large_log"}, 1.0, "variance_type 'fixed_large_log' has"),
        (DDPMScheduler, {"variance_type": "fixed_large"}, 0.5, "needs eta = 1, but got 0.5"),
        (DPMSolverMultistepScheduler, {"variance_type": "learned"}, 1.0, "variance_type 'learned' has"),
        (EDMEulerScheduler, {}, 1.0, "EDMEulerScheduler scales what goes into"),
        (HeunDiscreteScheduler, {}, 1.0, "HeunDiscreteScheduler has no spacing with 8 transitions"),
    ],
)
def test_what_a_chain_cannot_do_is_refused(kind, settings, eta, message):
    with pytest.raises(ValueError) as caught:
        scheduler_chain(kind(**settings), Loud(), SHAPE, 8, eta)
    assert message in str(caught.value) and "\n" not in str(caught.value)
