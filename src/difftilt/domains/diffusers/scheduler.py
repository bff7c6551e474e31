"""The schedulers of diffusers as chains."""

import copy
import inspect
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.policy import Decode, as_it_is
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.noise import DDIM, FixedLarge, FlowSDE, Noise
from difftilt.processes.schedule import NoiseSchedule

FLOW_NOISE = 0.7  # of Flow-GRPO (Liu et al., 2025)


def scheduler_chain(
    scheduler: Any,
    network: nn.Module,
    shape: tuple[int, ...],
    steps: int,
    eta: float = 1.0,
    *,
    decode: Decode = as_it_is,
    tune_std: bool = False,
) -> GaussianPolicy:
    """The chain that a scheduler samples: its noise levels, prediction type, variance and clipping.

    The steps of DDPM and DDIM are diffusers' own but for the last one, to clean data. Of schedulers with
    steps of another kind the chain has the levels, and the marginals, with the noise of `eta`.

    Args:
        scheduler: Any scheduler of diffusers; it is left as it was.
        network: Maps (x_t, time, cond) to what the scheduler's `prediction_type` says.
        shape: Shape of one state.
        steps: Transitions, as in `scheduler_schedule`.
        eta: Share of the DDPM noise, in (0, 1].
        decode: Maps x_0 to what rewards score.
        tune_std: As in `GaussianPolicy`.

    Raises:
        ValueError: If the scheduler does what a chain cannot: dynamic thresholds, learned variances, or
            EDM's scaling of what goes into and comes out of the network.
    """
    noise = _noise(type(scheduler).__name__, scheduler.config.get("variance_type"), eta)
    settings = network_settings(scheduler)
    schedule = scheduler_schedule(scheduler, steps)
    return GaussianPolicy(network, schedule, shape, noise=noise, decode=decode, tune_std=tune_std, **settings)


def network_settings(scheduler: Any) -> dict[str, Any]:
    """What a `GaussianPolicy` is told of the network that a scheduler is for.

    Raises:
        ValueError: As `scheduler_chain`.
    """
    from diffusers import DDIMParallelScheduler, DDIMScheduler

    config = scheduler.config
    _check(type(scheduler).__name__, config)
    # some have the setting, as CogVideoX's, and never clip
    clips = config.get("clip_sample", False) and "clip_sample_range" in inspect.getsource(
        type(scheduler).step
    )
    return {
        "prediction_type": _prediction(scheduler),
        "clip_sample": config.get("clip_sample_range", 1.0) if clips else None,
        "clip_noise": not isinstance(scheduler, DDIMScheduler | DDIMParallelScheduler),
    }


def scheduler_schedule(scheduler: Any, steps: int) -> NoiseSchedule:
    """The noise levels of any diffusers scheduler, in its own spacing; `scheduler_chain` honours the rest.

    The chain stops at the least noisy level that the network knows, since a last step to clean data would
    have no density. Where that level is one of the scheduler's timesteps itself, `steps` transitions take
    steps + 1 timesteps: such a pipeline draws the same chain with num_inference_steps = steps + 1.

    Args:
        scheduler: Any scheduler of diffusers; it is left as it was.
        steps: Transitions, at least 1.

    Raises:
        ValueError: If the scheduler has no spacing with so many transitions.
    """
    dtype = torch.get_default_dtype()
    found = []
    for timesteps in (steps, steps + 1):
        own = copy.deepcopy(scheduler)
        own.set_timesteps(timesteps)
        time, alpha, sigma = _levels(own, least=True)
        found.append(len(time) - 1)
        if found[-1] == steps:
            return NoiseSchedule(time, alpha.to(dtype), sigma.to(dtype))
    raise ValueError(
        f"a {type(scheduler).__name__} has no spacing with {steps} transitions: {steps} and {steps + 1}"
        f" timesteps make {found[0]} and {found[1]}; take another number of steps or timestep_spacing"
    )


def asked_schedule(scheduler: Any) -> tuple[NoiseSchedule, bool]:
    """The levels at which a scheduler that has its timesteps asks the network, and where its last step ends.

    Returns:
        The levels; and whether the last step ends in clean data, as most do, or at the least noisy level.
    """
    least = getattr(scheduler, "final_alpha_cumprod", None) if "sigmas" not in vars(scheduler) else None
    ends_clean = least is None or float(least) == 1
    time, alpha, sigma = _levels(scheduler, least=not ends_clean)
    dtype = torch.get_default_dtype()
    return NoiseSchedule(time, alpha.to(dtype), sigma.to(dtype)), ends_clean


def chain_noise(scheduler: Any, noise_level: float | None) -> Noise:
    """The noise of a chain: the scheduler's own, as in `scheduler_chain`, of flows `FlowSDE` of level 0.7.

    Args:
        noise_level: Of a `FlowSDE` in its place, above 0, if given.
    """
    if noise_level is None and not _is_flow(scheduler):
        return _noise(type(scheduler).__name__, scheduler.config.get("variance_type"), 1.0)
    return FlowSDE(noise_level or FLOW_NOISE)


def _levels(scheduler: Any, *, least: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Time, alpha and sigma of the timesteps that a scheduler has, the least noisy first.

    Args:
        least: Whether the least noisy level that a network knows is to be among them.
    """
    from diffusers import EDMEulerScheduler

    time = scheduler.timesteps.cpu()
    if "sigmas" not in vars(scheduler):  # a training schedule of alpha-bar, visited at whole numbers
        time = torch.cat([torch.zeros(int(least), dtype=torch.long), time.long()]).unique()
        alpha_bar = scheduler.alphas_cumprod.cpu().double()[time]
        return time, alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    sigma = scheduler.sigmas.cpu().double()[: len(time)].flip(0)
    if _is_flow(scheduler):
        return time.flip(0), 1 - sigma, sigma
    if isinstance(scheduler, EDMEulerScheduler):
        return time.flip(0), torch.ones_like(sigma), sigma
    alpha = (1 + sigma**2).rsqrt()
    return time.flip(0), alpha, alpha * sigma


def _is_flow(scheduler: Any) -> bool:
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    return flow or bool(scheduler.config.get("use_flow_sigmas"))


def _prediction(scheduler: Any) -> Any:
    """What the network predicts, in the words of `GaussianPolicy`, which are those of diffusers."""
    return "flow_prediction" if _is_flow(scheduler) else scheduler.config.get("prediction_type", "epsilon")


def _noise(kind: str, variance: str | None, eta: float) -> Noise:
    if variance == "fixed_large":
        if eta != 1:
            raise ValueError(
                f"variance_type 'fixed_large' of a {kind} needs eta = 1, but got {eta}; take 'fixed_small'"
            )
        return FixedLarge()
    if variance not in (None, "fixed_small", "fixed_small_log"):
        raise ValueError(
            f"a {kind} with variance_type {variance!r} has variances that no chain here has; give it"
            " variance_type 'fixed_small' or 'fixed_large', and a network that puts out no variance"
        )
    return DDIM(eta)


def _check(kind: str, config: Any) -> None:
    if config.get("thresholding"):
        raise ValueError(
            f"a {kind} with thresholding=True clips each sample at a quantile of its own, which a chain"
            " cannot; give it thresholding=False, and clip_sample=True for a fixed range"
        )
    if "EDM" in kind:
        raise ValueError(
            f"a {kind} scales what goes into and comes out of its network; do both in the network and build"
            " GaussianPolicy(network, scheduler_schedule(scheduler, steps), shape, prediction_type='sample')"
        )
