"""The real 8x8 handwritten digits of scikit-learn: data, a class-conditional diffusion model, classifiers.

Images have shape (1, 8, 8) and values in [0, 1], ink is 1; the chain's states are 2 x - 1, in [-1, 1].
`cond["label"]` is 0 to 9, or `NULL` for any.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.domains.split import Split
from difftilt.networks.bundle import Bundle, load_bundle, shipped_folder
from difftilt.processes.gaussian import GaussianPolicy, PredictionType
from difftilt.processes.noise import DDIM
from difftilt.processes.schedule import NoiseSchedule, cosine
from difftilt.shapes import Cond, Index, Probs, Real, State

CLASSES, NULL, SHAPE = 10, 10, (1, 8, 8)
STEPS = 20
LEVELS, LAST = 999, 30  # of the training schedule: how many there are, and where sampling ends
PREDICTION: PredictionType = "v_prediction"
IMAGES = Path(__file__).with_name("images.npz")


@dataclass(frozen=True)
class Images:
    """Images with their labels."""

    image: Real
    label: Index


def load_split() -> Split[Images]:
    """The 1797 images that ship with the package, always split in the same way: 40 %, 40 % and 20 %.

    Each part has the same share of every class.
    """
    with np.load(IMAGES) as file:
        image = torch.as_tensor(file["image"], dtype=torch.float32) / 16
        label = torch.as_tensor(file["label"], dtype=torch.long)
        parts = [torch.as_tensor(file[name], dtype=torch.long) for name in ("proxy", "gold", "held_out")]
    return Split(*(Images(image[rows], label[rows]) for rows in parts))


def state_of(image: Real) -> State:
    """Images with values in [0, 1] as states with values in [-1, 1], between which distances are measured."""
    return 2 * image - 1


def image_of(state: State) -> Real:
    """States as images; what lies beyond [-1, 1] is cut off."""
    return (state.clamp(-1, 1) + 1) / 2


def asked(count: int, label: int = NULL) -> Cond:
    """The condition of `count` images of one class, or of any."""
    return {"label": torch.full((count,), label)}


class DiT(nn.Module):
    """A diffusion transformer (Peebles and Xie, 2023) with one shared modulation (Chen et al., 2024).

    The null class makes it the unconditional model as well.

    Args:
        patch: Side of the square patches, a divisor of 8.
        width: Numbers per patch, divisible by `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        expand: Hidden units of a block's MLP, in multiples of the width.
    """

    def __init__(self, patch: int, width: int, depth: int, heads: int, expand: int):
        super().__init__()
        self.patch = patch
        side, pixels = SHAPE[-1] // patch, SHAPE[0] * patch**2
        self.register_buffer("frequency", math.pi * 2 ** torch.linspace(0, 7, 16), persistent=False)
        self.time = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(CLASSES + 1, width)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.embed = nn.Linear(pixels, width)
        self.position = nn.Parameter(0.1 * torch.randn(side**2, width))
        self.blocks = nn.ModuleList(_Block(width, heads, expand) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, pixels)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: State, time: Tensor, cond: Cond) -> State:
        label = cond.get("label")
        if not isinstance(label, Tensor):
            raise ValueError(f"digits need cond['label'] with 0 to 9, or {NULL} for any; got {sorted(cond)}")
        phase = time[:, None] / 1000 * self.get_buffer("frequency")
        context = self.time(torch.cat([phase.sin(), phase.cos()], 1)) + self.label(label)
        modulation = self.modulation(context)[:, None]
        patches = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)
        hidden = self.embed(patches) + self.position
        for block in self.blocks:
            hidden = block(hidden, modulation)
        patches = self.out(self.norm(hidden)).transpose(1, 2)
        side = SHAPE[-1] // self.patch
        return F.pixel_shuffle(patches.unflatten(2, (side, side)), self.patch)


class _Block(nn.Module):
    """Attention, then an MLP; what the image should become scales, shifts and gates both."""

    def __init__(self, width: int, heads: int, expand: int):
        super().__init__()
        self.heads = heads
        self.offset = nn.Parameter(torch.zeros(6 * width))
        self.norm_1 = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, expand * width), nn.SiLU(), nn.Linear(expand * width, width)
        )

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (modulation + self.offset).chunk(6, -1)
        qkv = self.qkv(self.norm_1(x) * (1 + scale_1) + shift_1)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attention = F.scaled_dot_product_attention(q, k, v)
        x = x + gate_1 * self.merge(attention.transpose(1, 2).flatten(2))
        return x + gate_2 * self.mlp(self.norm_2(x) * (1 + scale_2) + shift_2)


class Classifier(nn.Module):
    """A small convolutional network from images to the logits of the ten classes.

    Args:
        width: Channels of the first layers; the last ones have twice as many.
        features: Size of the layer before the last, in which distances between images are measured.
    """

    def __init__(self, width: int, features: int):
        super().__init__()
        self.features = _Features(
            *_convolution(1, width),
            *_convolution(width, width),
            nn.AvgPool2d(2),
            *_convolution(width, 2 * width),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(8 * width, features),
            nn.SiLU(),
        )
        self.out = nn.Linear(features, CLASSES)

    def forward(self, x: Real) -> Probs:
        return self.out(self.features(x))


class _Features(nn.Sequential):
    """Layers that were taught with states, and are asked about images."""

    def forward(self, input: Real) -> Tensor:
        return super().forward(state_of(input))


def _convolution(channels_in: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, 3, padding=1),
        nn.GroupNorm(8, channels),
        nn.SiLU(),
    ]


def digits_policy(
    steps: int = STEPS, *, eta: float = 1.0, tune_std: bool = False, folder: Path | None = None
) -> GaussianPolicy:
    """The pretrained chain; `cond["label"]` is the digit, or `NULL` for any.

    Args:
        steps: Transitions, 1 to 969. More draw better images and cost more.
        eta: Share of the DDPM noise, in (0, 1].
        tune_std: As in `GaussianPolicy`.
        folder: Weights; those of the package by default.
    """
    bundle = bundle_of(folder)
    network = bundle.load("model", DiT(**bundle.config["network"]))
    return chain_of(network, sampling_schedule(steps), eta=eta, tune_std=tune_std)


def training_schedule() -> NoiseSchedule:
    """All the noise levels that the network knows: Nichol and Dhariwal's cosine."""
    return cosine(LEVELS)


def sampling_schedule(steps: int) -> NoiseSchedule:
    """Some of the training levels, evenly by index from `LAST` up.

    The chain ends where sigma is 0.06, half a grey level of the data. Ending lower would make the last
    steps so narrow that a change of the mean nobody can see costs many nats.
    """
    if not 1 <= steps <= LEVELS - LAST:
        raise ValueError(f"steps must be 1 to {LEVELS - LAST}, but got {steps}")
    return training_schedule().take(torch.linspace(LAST, LEVELS, steps + 1).round().long())


def chain_of(
    network: nn.Module, schedule: NoiseSchedule, *, eta: float = 1.0, tune_std: bool = False
) -> GaussianPolicy:
    """The chain of a network for digits. It decodes states to images with values in [0, 1]."""
    return GaussianPolicy(
        network,
        schedule,
        SHAPE,
        noise=DDIM(eta),
        prediction_type=PREDICTION,
        decode=lambda x, cond: image_of(x),
        tune_std=tune_std,
    )


def load_classifier(name: str, folder: Path | None = None) -> Classifier:
    """A pretrained classifier, frozen: `proxy` for rewards, `gold` to judge what came of them."""
    if name not in ("proxy", "gold"):
        raise ValueError(f"the digit classifiers are 'proxy' and 'gold', but got {name!r}")
    bundle = bundle_of(folder)
    return bundle.frozen(name, Classifier(**bundle.config["classifier"]))


def bundle_of(folder: Path | None) -> Bundle:
    """The networks in a folder, or those that come with the package."""
    return load_bundle(
        folder or shipped_folder("digits"), "digits model", "make one with difftilt pretrain digits"
    )
