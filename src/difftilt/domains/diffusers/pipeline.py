"""Any text-to-image or text-to-video pipeline of diffusers as a chain.

    pipe = DiffusionPipeline.from_pretrained(...)
    policy = pipeline_policy(pipe, steps=28, guidance_scale=4.5)
    reference = lora(policy)

Its condition is the prompt: {"prompt": ["a cat", ...]}, with {"negative_prompt": [...]} where rows differ in
that, and {"image": [...]}, pictures or their files, where the pipeline edits them. The weights are diffusers'
own, so that `pipe("a cat")` draws from what was trained.
"""

import inspect
from typing import Any, cast

import torch
import torch.nn as nn

from difftilt.conditions import take
from difftilt.domains.diffusers.one_step import PROMPT, OneStep, Unconditional, denoisers_of, takes_images
from difftilt.domains.diffusers.scheduler import asked_schedule, chain_noise, network_settings
from difftilt.domains.diffusers.self_check import check_step, watched
from difftilt.networks.adapters import AdaptersOff, adapters_off
from difftilt.networks.micro_batch import MicroBatch, in_parts
from difftilt.policy import Decode
from difftilt.processes.gaussian import GaussianPolicy, clean_from
from difftilt.processes.noise import Noise
from difftilt.processes.schedule import NoiseSchedule
from difftilt.settings import Count, Positive, check_value
from difftilt.shapes import Cond, Index, Sample, State

OURS = ("prompt", "num_inference_steps", "output_type", "generator", "latents", "return_dict")


def pipeline_policy(
    pipe: Any,
    steps: int,
    *,
    noise_level: float | None = None,
    noise: Noise | None = None,
    micro_batch: int | None = None,
    **call: Any,
) -> GaussianPolicy:
    """A pipeline as a chain over its latents, which decodes to images or videos in [0, 1].

    The network is the pipeline's own call, run for one step. All weights are frozen: `lora` adds those that
    train. The last step, which is deterministic, is part of decoding, and taken with the adapters switched
    off, so that the reward is a fixed function of x_0. A safety checker and a watermark are left out.

    Args:
        pipe: On the device, and in the precision, that it is to be used in. It stays as it is, but
            for what trains.
        steps: The pipeline's inference steps, at least 2.
        noise_level: Of the chain's noise, as in `FlowSDE`, above 0: 2 ** 0.5 is that of DDPM, and less is
            nearer to the deterministic sampler. By default the scheduler's own, and 0.7 for flows.
        noise: Of the chain, in the place of that.
        micro_batch: Rows that pass through the network or the decoder at a time; all by default.
        call: What the pipeline's call is given with each prompt, such as guidance_scale and height.

    Raises:
        ValueError: If the pipeline cannot be run one step at a time, or does not do the same then; the
            message says at which step, and by how much.
    """
    check_value("steps", steps, Count)
    if noise_level is not None:
        check_value("noise_level", noise_level, Positive)
    step = one_step(pipe, steps, call)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    schedule, ends_clean = asked_schedule(step.scheduler)
    settings = network_settings(step.scheduler)
    network = MicroBatch(step, micro_batch, one_time=True)
    policy = GaussianPolicy(
        network,
        schedule,
        step.shape,
        noise=noise or chain_noise(step.scheduler, noise_level),
        decode=_decoder(network, schedule, settings, pipe.device)
        if ends_clean
        else _parted(lambda x, cond: _images(network, x), micro_batch),
        **settings,
    )
    check_step(step, pipe, watched(pipe, steps, call))
    return policy.to(pipe.device)


def one_step(pipe: Any, steps: int, call: dict[str, Any]) -> OneStep | Unconditional:
    """The network of a pipeline.

    Raises:
        ValueError: If it cannot be run one step at a time.
    """
    name, known = type(pipe).__name__, inspect.signature(type(pipe).__call__).parameters
    if wrong := [key for key in call if key not in known or key in OURS]:
        valid = ", ".join(key for key in known if key not in ("self", *OURS))
        raise ValueError(f"the call of a {name} takes {valid}, but got {wrong[0]}")
    if getattr(pipe, "_all_hooks", []):
        raise ValueError(
            f"got a {name} whose parts are moved off the device between calls, which training cannot do; load"
            " it without CPU offload, in bfloat16 or with a smaller micro_batch"
        )
    encoder: Any = getattr(pipe, "encode_prompt", None)
    if "strength" in known or (
        takes_images(pipe) and encoder is not None and "image" in inspect.signature(encoder).parameters
    ):
        how = "starts from a noised image" if "strength" in known else "encodes prompts together with images"
        raise ValueError(f"a {name} {how}, which no chain here does; take one that starts from noise alone")
    parts, prompted = denoisers_of(pipe), PROMPT in known
    if not parts or (getattr(pipe, "encode_prompt", None) is None if prompted else [*parts] != ["unet"]):
        raise ValueError(
            f"a {name} is none of those that work here: they have a UNet or a transformer, a scheduler, and"
            " an encode_prompt if they take prompts"
        )
    try:
        return OneStep(pipe, steps, call) if prompted else Unconditional(pipe, steps)
    except (AttributeError, KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"a {name} cannot be run one step at a time with these settings ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:300]})"
        ) from error


def _decoder(network: MicroBatch, schedule: NoiseSchedule, settings: dict[str, Any], device: Any) -> Decode:
    """The last step to clean data, without adapters, and the pipeline's own decoding."""
    time, a, s = (level[:1].to(device) for level in (schedule.time, schedule.alpha, schedule.sigma))
    kind, clip = settings["prediction_type"], settings["clip_sample"]

    def finish(x: State, cond: Cond) -> Sample:
        with adapters_off(network):
            output = network(x, time.expand(len(x)), cond).to(x.dtype)
        x_0 = clean_from(output, kind, x, a.to(x), s.to(x))
        return _images(network, x_0 if clip is None else x_0.clamp(-clip, clip))

    return _parted(finish, network.size)


def _parted(decode: Decode, size: int | None) -> Decode:
    """A decoder of some rows at a time."""

    def whole(x: State, cond: Cond) -> Sample:
        def part(rows: Index) -> Sample:
            return decode(x[rows], take(cond, rows))

        return in_parts(part, torch.arange(len(x), device=x.device).split(size or len(x)))

    return whole


def deployed(policy: GaussianPolicy, x: State, cond: Cond) -> Sample:
    """What `pipe(...)` draws with the weights as they are, from given x_T, by its own scheduler's steps.

    Args:
        policy: Made by `pipeline_policy`.
        x: x_T of the chain, one row per condition.
    """
    network = cast(MicroBatch, policy.network)
    step, generator = step_of(network), torch.Generator(x.device).manual_seed(0)
    parts = torch.arange(len(x), device=x.device).split(network.size or len(x))
    images = torch.cat([step.deployed(x[rows], take(cond, rows), generator) for rows in parts])
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _images(network: MicroBatch, x: State) -> Sample:
    """What rewards score, in float32 or better."""
    image = step_of(network).images(x)
    return image.to(torch.promote_types(image.dtype, torch.float32))


def step_of(network: nn.Module) -> OneStep | Unconditional:
    """The pipeline within a chain's network."""
    for part in network.modules():
        shared = part.shared if isinstance(part, AdaptersOff) else part
        if isinstance(shared, OneStep | Unconditional):
            return shared
    raise ValueError(f"the network is a {type(network).__name__} and no pipeline; make it by pipeline_policy")
