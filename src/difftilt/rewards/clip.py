"""What CLIP models say of images: agreement with their prompts, and what a head makes of their features."""

from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from difftilt.data.read import read_tensors
from difftilt.rewards.image import check_range
from difftilt.shapes import Cond, PerSample, Real

PART = 32  # images that are looked at together
ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "gelu": nn.GELU}


class CLIP:
    """A CLIP model, loaded from safetensors when it is first needed.

    Args:
        name: A folder, or a name on the Hugging Face hub.
        asker: The reward that messages name.
    """

    def __init__(self, name: str, asker: str):
        self.name, self._asker = name, asker

    def looks(self, images: Tensor) -> Tensor:
        """Images as the model was trained to see them."""
        _, _, how = self.loaded
        side = how["crop_size"]["height"] if how.get("do_center_crop") else self._side
        shorter = min(images.shape[-2:])
        size = [round(n * side / shorter) for n in images.shape[-2:]]
        images = F.interpolate(images.float(), size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((n - side) // 2 for n in size)
        images = images[..., top : top + side, left : left + side]
        mean, std = (images.new_tensor(how[name])[:, None, None] for name in ("image_mean", "image_std"))
        return (images - mean) / std

    @property
    def _side(self) -> int:
        return self.loaded[0].config.vision_config.image_size

    @cached_property
    def loaded(self) -> tuple[Any, Any, dict[str, Any]]:
        """The model, its tokenizer, and how images are prepared."""
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.image_processing_base import ImageProcessingMixin
        except ImportError as error:
            message = f"reward {self._asker} needs transformers: pip install 'difftilt[diffusers]'"
            raise ImportError(message) from error
        try:
            model = AutoModel.from_pretrained(self.name, use_safetensors=True, dtype=torch.float32)
            how, _ = ImageProcessingMixin.get_image_processor_dict(self.name)
            tokenizer = AutoTokenizer.from_pretrained(self.name)
        except (OSError, ValueError, KeyError) as error:
            why = " ".join(str(error).split())[:300]
            raise ValueError(f"{self.name} cannot be loaded as a CLIP model ({why})") from error
        if "logit_scale" not in dict(model.named_parameters()):
            raise ValueError(
                f"{self.name} is a {type(model).__name__}, which compares no images with texts; name a model"
                " such as openai/clip-vit-large-patch14"
            )
        return model.eval().requires_grad_(False), tokenizer, how

    def over_frames(self, sample: Real, score: Callable[[Tensor, list[int]], PerSample]) -> PerSample:
        """The mean over frames, of an image its only one, of what is said of a part of the images at a time.

        Args:
            score: Maps images as the model sees them, and the rows of the samples that they are of.
        """
        check_range(sample)
        frames = sample.shape[1] if sample.ndim == 5 else 1
        images = self.looks(sample.flatten(0, 1) if sample.ndim == 5 else sample)
        rows = [row for row in range(len(sample)) for _ in range(frames)]
        found = [score(images[i : i + PART], rows[i : i + PART]) for i in range(0, len(images), PART)]
        return torch.cat(found).view(-1, frames).mean(1)


class PromptAgreement:
    """The logit that a CLIP model gives an image and its own prompt; differentiable.

    Of CLIP it is a hundred times the cosine between the two embeddings; of PickScore, HPS and other models
    that were trained on what people prefer and have CLIP's form, it is their score as published. Of a video
    it is the mean over the frames. Images are scaled such that the shorter side fits, and cut to a square.

    Args:
        name: A folder, or a name on the Hugging Face hub, such as openai/clip-vit-large-patch14 or
            yuvalkirstain/PickScore_v1. It is loaded when it is first asked, from safetensors only.

    Raises:
        ValueError: When it is called, if there is no such model, or images have no prompts.
    Source:
        Radford et al. (2021), https://arxiv.org/abs/2103.00020; Kirstain et al. (2023), PickScore,
        https://arxiv.org/abs/2305.01569; Wu et al. (2023), HPS v2, https://arxiv.org/abs/2306.09341
    """

    def __init__(self, name: str):
        if not name:
            raise ValueError("the reward 'clip:' names no model; give a folder or a name, clip:NAME")
        self.name, self.__name__ = name, f"clip:{name}"
        self._clip = CLIP(name, self.__name__)

    def __call__(self, sample: Real, cond: Cond) -> PerSample:
        prompts = cond.get("prompt")
        if not isinstance(prompts, list) or sample.ndim not in (4, 5):
            raise ValueError(
                f"reward {self.__name__} compares images with their prompts, but got samples of shape"
                f" {tuple(sample.shape)} with the conditions {sorted(cond)}"
            )
        return self._clip.over_frames(sample, lambda x, rows: self._logits(x, [prompts[i] for i in rows]))

    def _logits(self, images: Tensor, texts: list[str]) -> PerSample:
        model, tokenizer, _ = self._clip.loaded
        model.to(images.device)
        longest = model.config.text_config.max_position_embeddings
        words = tokenizer(
            texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        found = model(pixel_values=images.float(), **words.to(images.device))
        return found.logits_per_image.diagonal()


class Aesthetic:
    """What a head makes of the features that a CLIP model has of an image; differentiable.

    The head is linear layers, one after the other, on the normalised embedding, as LAION's aesthetic
    predictor; its file names them in their order, such as layers.0.weight. Where the file's metadata says so,
    each but the last is followed by `activation`, relu or gelu. Of a video it is the mean over the frames.

    Args:
        name: `CLIP:HEAD`: a CLIP model as in `PromptAgreement`, and the head's safetensors file, or the name
            of a model on the Hugging Face hub that has one called model.safetensors.

    Raises:
        ValueError: When it is called, if there is no such model or head, or they do not fit.
    Source:
        Schuhmann et al. (2022), LAION-5B. https://arxiv.org/abs/2210.08402
    """

    def __init__(self, name: str):
        clip, _, head = name.rpartition(":")
        if not clip or not head:
            raise ValueError(
                "the reward 'aesthetic:' needs a CLIP model and a head, aesthetic:CLIP:FILE, but got"
                f" {name!r}"
            )
        self.__name__, self._file = f"aesthetic:{name}", head
        self._clip = CLIP(clip, self.__name__)

    def __call__(self, sample: Real, cond: Cond) -> PerSample:
        if sample.ndim not in (4, 5):
            raise ValueError(f"reward {self.__name__} looks at images, but got shape {tuple(sample.shape)}")
        return self._clip.over_frames(sample, lambda x, rows: self._score(x))

    def _score(self, images: Tensor) -> PerSample:
        model, _, _ = self._clip.loaded
        found = model.to(images.device).get_image_features(pixel_values=images.float())
        features = found if isinstance(found, Tensor) else found.pooler_output
        head = self._head.to(images.device)
        first = next(head.parameters()).shape[1]
        if features.shape[1] != first:
            raise ValueError(
                f"the head {self._file} reads {first} features, but {self._clip.name} has"
                f" {features.shape[1]}; take the CLIP model that it was trained with"
            )
        return head(F.normalize(features, dim=1))[:, 0]

    @cached_property
    def _head(self) -> nn.Sequential:
        return load_head(head_file(self._file))


def head_file(name: str) -> Path:
    """The file of a head, from this machine or the Hugging Face hub."""
    path = Path(name)
    if path.is_file():
        return path
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, "model.safetensors"))
    except (ImportError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise ValueError(f"{name} is no file, and no head of it can be had from the hub ({why})") from error


def load_head(path: Path) -> nn.Sequential:
    """The linear layers of a safetensors file, frozen.

    Raises:
        ValueError: If they do not follow each other down to one number.
    """
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        activation = (file.metadata() or {}).get("activation", "none")
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"the head {path} has activation {activation!r}, which must be one of {[*ACTIVATIONS]}"
        )
    names = sorted((n for n, x in tensors.items() if x.ndim == 2), key=_in_order)
    widths = [tuple(tensors[n].shape) for n in names]
    if not names or widths[-1][0] != 1 or any(a[0] != b[1] for a, b in pairwise(widths)):
        raise ValueError(
            f"the head {path} must hold linear layers down to one number, but got layers of {widths}"
        )
    layers: list[nn.Module] = []
    for name in names:
        weight, bias = tensors[name].float(), tensors.get(f"{name.removesuffix('weight')}bias")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
        layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias.float()}))
        layers += [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1]).requires_grad_(False)


def _in_order(name: str) -> list[tuple[int, str]]:
    """Names with their numbers as numbers: layers.10 comes after layers.9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
