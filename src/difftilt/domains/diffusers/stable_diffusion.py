"""Stable Diffusion 1.x and 2.x: the UNet is the network, prompts are the condition, the VAE decodes.

    pipe = StableDiffusionPipeline.from_pretrained(...)
    policy, encode = stable_diffusion(pipe)
    reference = lora(policy, pipe)

The weights are diffusers' own, so that `pipe("a prompt")` draws from what was trained.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from difftilt.data.read import read_tensors
from difftilt.data.vocabulary import words
from difftilt.domains.diffusers.scheduler import scheduler_chain
from difftilt.networks import adapter_layers, adapters
from difftilt.networks.guidance import ClassifierFreeGuidance
from difftilt.networks.micro_batch import MicroBatch
from difftilt.policy import Policy
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.shapes import Cond, Output, Sample, State

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

Encode = Callable[[Sequence[str]], Cond]
LORA_FILE = "pytorch_lora_weights.safetensors"  # what diffusers looks for


def stable_diffusion(
    pipe: "StableDiffusionPipeline",
    steps: int = 50,
    eta: float = 1.0,
    guidance_scale: float = 7.5,
    micro_batch: int | None = None,
    negative_prompt: str = "",
) -> tuple[GaussianPolicy, Encode]:
    """The pipeline as a chain over latents, and the encoder of its prompts.

    The VAE and the text encoder are frozen. x_0 is the scheduler's least noisy level.

    Args:
        pipe: On the device, and in the precision, that it is to be used in.
        steps: Transitions, in the spacing of the pipeline's scheduler, as in `scheduler_schedule`.
        eta: Share of the DDPM noise, in (0, 1].
        guidance_scale: Classifier-free guidance in sampling and in training; 1 is none, at half the cost.
        micro_batch: Rows that pass through the UNet or the VAE at a time; all by default.
        negative_prompt: What guidance leads away from.
    """
    _check(pipe)
    pipe.vae.requires_grad_(False)
    pipe.text_encoder.requires_grad_(False)
    encode = _encoder(pipe)
    network: nn.Module = Unet(pipe.unet)
    if guidance_scale != 1:
        embed = encode([negative_prompt])["embed"]
        network = ClassifierFreeGuidance(network, guidance_scale, {"embed": torch.as_tensor(embed)[0]})
    if micro_batch is not None:
        network = MicroBatch(network, micro_batch)
    side = pipe.unet.config["sample_size"]
    shape = (pipe.unet.config["in_channels"], side, side)
    decode = _decoder(pipe, micro_batch)
    policy = scheduler_chain(pipe.scheduler, network, shape, steps, eta, decode=decode)
    return policy.to(pipe.unet.device), encode


class Unet(nn.Module):
    """A diffusers UNet as a function of (x, time, cond). It computes in the precision of the embedding."""

    def __init__(self, unet: nn.Module):
        super().__init__()
        self.unet = unet

    def forward(self, x: State, time: Tensor, cond: Cond) -> Output:
        embed = torch.as_tensor(cond["embed"])
        return self.unet(x.to(embed.dtype), time, embed).sample


def lora(
    policy: GaussianPolicy,
    pipe: "StableDiffusionPipeline",
    rank: int | None = None,
    targets: Sequence[str] | None = None,
) -> Policy:
    """Freezes the UNet, adds LoRA to it and returns the chain without, which is the reference.

    A pipeline with a loaded LoRA goes on with that one.

    Args:
        rank: Of the update of each layer, at least 1; by default 4, or that of the loaded LoRA.
        targets: Ends of the names of the layers that get one; by default those of attention.
    """
    return adapters.lora(policy, rank, targets, pipe.unet)


def save_lora(pipe: "StableDiffusionPipeline", folder: Path | str) -> None:
    """Writes the adapters as `pipe.load_lora_weights(folder)` reads them."""
    unet: Any = pipe.unet
    name = adapter_layers.adapter_name(unet)
    pipe.save_lora_weights(
        folder,
        unet_lora_layers=adapter_layers.load_peft().get_peft_model_state_dict(unet, adapter_name=name),
        unet_lora_adapter_metadata=unet.peft_config[name].to_dict(),
        weight_name=LORA_FILE,
    )


def load_lora(pipe: "StableDiffusionPipeline", folder: Path | str) -> None:
    """Adds saved adapters to a pipeline that has none. `lora` goes on with them.

    Raises:
        ValueError: If the UNet carries adapters already, or if a weight belongs to no layer of the UNet.
            diffusers would pass over it in silence.
    """
    adapter_layers.check_bare(pipe.unet)
    path = Path(folder) / LORA_FILE
    weights = adapter_layers.fitting(read_tensors(path), pipe.unet, "unet.", path)
    pipe.load_lora_weights(str(folder), weight_name=LORA_FILE)
    adapter_layers.train_adapters(pipe.unet)
    # once more in float32, since diffusers rounds them to the precision of the UNet
    name = adapter_layers.adapter_name(pipe.unet)
    adapter_layers.load_peft().set_peft_model_state_dict(pipe.unet, weights, name)


def _check(pipe: Any) -> None:
    try:
        from diffusers import StableDiffusionPipeline
    except ImportError as error:
        message = "Stable Diffusion needs diffusers; install it with pip install 'difftilt[diffusers]'"
        raise ImportError(message) from error
    if not isinstance(pipe, StableDiffusionPipeline):
        raise ValueError(f"a StableDiffusionPipeline (1.x or 2.x) is needed, but got a {type(pipe).__name__}")


def _encoder(pipe: "StableDiffusionPipeline") -> Encode:
    """Each prompt passes through the text encoder once."""
    known: dict[str, Tensor] = {}
    device, dtype = pipe.unet.device, pipe.unet.dtype  # asked before adapters of another dtype join

    def encode(prompts: Sequence[str]) -> Cond:
        prompts = words(prompts)
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
        if new:
            with torch.no_grad():
                embed, _ = pipe.encode_prompt(new, device, 1, False)
            known.update(zip(new, embed.to(dtype), strict=True))
        return {"prompt": prompts, "embed": torch.stack([known[prompt] for prompt in prompts])}

    return encode


def _decoder(pipe: "StableDiffusionPipeline", micro_batch: int | None) -> Callable[[State], Sample]:
    """Latents to images in [0, 1], with a gradient where one is asked for."""

    def images(latent: State) -> Sample:
        latent = latent.to(pipe.vae.dtype) / pipe.vae.config["scaling_factor"]
        image = pipe.vae.decode(latent).sample
        return (image.to(torch.promote_types(image.dtype, torch.float32)) / 2 + 0.5).clamp(0, 1)

    def decode(latent: State) -> Sample:
        parts = latent.split(micro_batch or len(latent))
        if len(parts) > 1 and torch.is_grad_enabled():
            return torch.cat([torch.as_tensor(checkpoint(images, x, use_reentrant=False)) for x in parts])
        return torch.cat([images(x) for x in parts])

    return decode
