"""Rewards of images, shape (batch, channels, height, width) with values in [0, 1]."""

import base64
from collections.abc import Callable
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from difftilt.guard import Reward
from difftilt.shapes import Cond, Index, PerSample, Real, Sample

KILOBYTE = 1000
HALF_LEVEL = 0.5 / 255  # what is less than this beyond [0, 1] is rounding: in 8 bits it makes no difference


def class_log_prob(classifier: Callable[[Sample], Tensor], target: int | str) -> Reward:
    """The reward log p(y | x) of a classifier; differentiable.

    With alpha = 1 its optimum is the class-conditional distribution p(x | y), as far as the classifier is
    right.

    Args:
        classifier: Maps samples, in the range that the chain decodes to, to logits. It should be in
            evaluation mode and frozen.
        target: The class y, or the name of the condition that holds each sample's class.
    """

    def log_prob(sample: Sample, cond: Cond) -> PerSample:
        logits = classifier(sample)
        label = _label(target, cond, logits)
        return logits.log_softmax(1).gather(1, label[:, None])[:, 0]

    return log_prob


def ink(sample: Real, cond: Cond) -> PerSample:
    """The mean of all pixels: the share of the paper under ink, where 1 is ink; differentiable."""
    check_range(sample)
    return sample.flatten(1).mean(1)


def symmetry(sample: Real, cond: Cond) -> PerSample:
    """Minus the mean squared difference between an image and its mirror image; differentiable.

    The unit is the deviation of a pixel from medium grey, 1 / 2, so that the reward is in [-4, 0].
    """
    check_range(sample)
    return -(2 * (sample - sample.flip(-1))).square().flatten(1).mean(1)


def png_bytes(sample: Real, cond: Cond, *, upscale: int = 8) -> PerSample:
    """Minus the size as PNG in kilobytes of 1000 bytes; black-box.

    Args:
        upscale: Every pixel becomes a square of this side first: small files are mostly header.
    """
    return _size(sample, upscale, "PNG", optimize=True)


def jpeg_bytes(sample: Real, cond: Cond, *, upscale: int = 8, quality: int = 95) -> PerSample:
    """Minus the size as JPEG in kilobytes of 1000 bytes; black-box.

    Args:
        upscale: As for `png_bytes`. At 8 every pixel is one block of the JPEG, without texture inside.
        quality: Of the JPEG, 1 to 95.
    Source:
        Black et al. (2024), compressibility. https://arxiv.org/abs/2305.13301
    """
    return _size(sample, upscale, "JPEG", quality=quality)


def pictures(sample: Real, upscale: int = 1) -> list[Image.Image]:
    """Images of 8 bits per channel, grey or RGB.

    Raises:
        ValueError: If the shape is not that of images, or as for `check_range`.
    """
    if sample.ndim != 4 or sample.shape[1] not in (1, 3):
        raise ValueError(
            f"an image batch has shape (batch, 1 or 3, height, width), but got {tuple(sample.shape)}; decode"
            " samples to images before they are scored or drawn"
        )
    check_range(sample)
    bytes_ = (sample.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    large = bytes_.repeat_interleave(upscale, 2).repeat_interleave(upscale, 3).permute(0, 2, 3, 1)
    return [Image.fromarray((image[:, :, 0] if image.shape[2] == 1 else image).numpy()) for image in large]


def check_range(sample: Real) -> None:
    """Makes sure that all values are in [0, 1], up to rounding.

    Raises:
        ValueError: If a value lies half a level of 8 bits or more outside, or is no number.
    """
    if not sample.numel():
        return
    low, high = (bound.item() for bound in sample.detach().aminmax())
    if not (low > -HALF_LEVEL and high < 1 + HALF_LEVEL):
        raise ValueError(
            f"images have values in [0, 1], but got {low:.4g} to {high:.4g}; map them in the chain's decode,"
            " from [-1, 1] by (x.clamp(-1, 1) + 1) / 2"
        )


def pngs(images: Real) -> list[str]:
    """Images as data: URLs of PNG files."""
    files = [base64.b64encode(encoded(picture, "PNG")).decode() for picture in pictures(images)]
    return [f"data:image/png;base64,{file}" for file in files]


def encoded(picture: Image.Image, format: str, **options: int) -> bytes:
    """A picture as a file of that format."""
    buffer = BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def _size(sample: Real, upscale: int, format: str, **options: int) -> PerSample:
    sizes = [-len(encoded(picture, format, **options)) / KILOBYTE for picture in pictures(sample, upscale)]
    return torch.tensor(sizes, dtype=torch.float32, device=sample.device)


def _label(target: int | str, cond: Cond, logits: Tensor) -> Index:
    """Each sample's class, checked against the number of logits."""
    if isinstance(target, int):
        label = torch.full((len(logits),), target, device=logits.device)
    else:
        given = cond.get(target)
        if not isinstance(given, Tensor):
            raise ValueError(
                f"the reward reads each sample's class from cond['{target}']; got {sorted(cond)}"
            )
        label = given.to(logits.device)
    if len(label) and not 0 <= int(label.min()) <= int(label.max()) < logits.shape[1]:
        raise ValueError(
            f"the target class must be 0 to {logits.shape[1] - 1}, but got {int(label.min())} to"
            f" {int(label.max())}; ask for a class the classifier knows"
        )
    return label
