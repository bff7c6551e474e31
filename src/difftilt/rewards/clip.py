"""How well images agree with their prompts, in the eyes of a CLIP model."""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from difftilt.rewards.image import check_range
from difftilt.shapes import Cond, PerSample, Real

PART = 32  # images that are looked at together


class PromptAgreement:
    """The logit that a CLIP model gives an image and its own prompt; differentiable.

    Of CLIP it is a hundred times the cosine between the two embeddings; of PickScore, and of other models
    that were trained on what people prefer and have CLIP's form, it is their score as published. Of a video
    it is the mean over the frames. Images are scaled such that the shorter side fits, and cut to a square.

    Args:
        name: A folder, or a name on the Hugging Face hub, such as openai/clip-vit-large-patch14 or
            yuvalkirstain/PickScore_v1. It is loaded when it is first asked, from safetensors only.

    Raises:
        ValueError: When it is called, if there is no such model, or images have no prompts.
    Source:
        Radford et al. (2021), https://arxiv.org/abs/2103.00020; Kirstain et al. (2023), PickScore,
        https://arxiv.org/abs/2305.01569
    """

    def __init__(self, name: str):
        if not name:
            raise ValueError("the reward 'clip:' names no model; give a folder or a name, clip:NAME")
        self.name, self.__name__ = name, f"clip:{name}"

    def __call__(self, sample: Real, cond: Cond) -> PerSample:
        prompts = cond.get("prompt")
        if not isinstance(prompts, list) or sample.ndim not in (4, 5):
            raise ValueError(
                f"reward {self.__name__} compares images with their prompts, but got samples of shape"
                f" {tuple(sample.shape)} with the conditions {sorted(cond)}"
            )
        check_range(sample)
        frames = sample.shape[1] if sample.ndim == 5 else 1
        images = self._looks(sample.flatten(0, 1) if sample.ndim == 5 else sample)
        texts = [prompt for prompt in prompts for _ in range(frames)]
        logits = [
            self._logits(images[i : i + PART], texts[i : i + PART]) for i in range(0, len(images), PART)
        ]
        return torch.cat(logits).view(-1, frames).mean(1)

    def _logits(self, images: Tensor, texts: list[str]) -> PerSample:
        model, tokenizer, _ = self._loaded
        model.to(images.device)
        longest = model.config.text_config.max_position_embeddings
        words = tokenizer(
            texts, padding="max_length", truncation=True, max_length=longest, return_tensors="pt"
        )
        found = model(pixel_values=images.float(), **words.to(images.device))
        return found.logits_per_image.diagonal()

    def _looks(self, images: Tensor) -> Tensor:
        """Images as the model was trained to see them."""
        _, _, how = self._loaded
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
        return self._loaded[0].config.vision_config.image_size

    @cached_property
    def _loaded(self) -> tuple[Any, Any, dict[str, Any]]:
        """The model, its tokenizer, and how images are prepared."""
        try:
            from transformers import AutoModel, AutoTokenizer
            from transformers.image_processing_base import ImageProcessingMixin
        except ImportError as error:
            message = f"reward {self.__name__} needs transformers: pip install 'difftilt[diffusers]'"
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
