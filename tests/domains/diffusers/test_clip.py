"""Rewards of CLIP models, and of heads on their features, on tiny ones of random weights."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import save_file

from difftilt.experiment.reward import find_reward
from difftilt.rewards.clip import Aesthetic, PromptAgreement, load_head
from difftilt.settings import UsageError

SIDE, WORDS = 16, 12
PROMPTS = ["a red house", "a cat", "blue"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    from transformers import CLIPConfig, CLIPModel

    made = tmp_path_factory.mktemp("clip")
    tower: dict[str, Any] = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2
    }  # fmt: skip
    text = {"vocab_size": tiny.WORDS, "max_position_embeddings": WORDS, "bos_token_id": 3, "eos_token_id": 1}
    vision = {"image_size": SIDE, "patch_size": 8}
    torch.manual_seed(0)
    config: Any = CLIPConfig
    CLIPModel(
        config(text_config=tower | text, vision_config=tower | vision, projection_dim=8)
    ).save_pretrained(made)
    tiny.tokenizer(WORDS).save_pretrained(made)
    images = {
        "size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, "do_resize": True,
        "do_center_crop": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255,
        "image_mean": [0.48, 0.45, 0.4], "image_std": [0.26, 0.26, 0.27], "resample": 3,
        "image_processor_type": "CLIPImageProcessor",
    }  # fmt: skip
    (made / "preprocessor_config.json").write_text(json.dumps(images))
    return made


def test_it_is_the_models_own_logit_and_has_a_gradient(folder):
    from transformers import CLIPImageProcessorPil, CLIPModel

    smooth = torch.nn.functional.interpolate(torch.rand(3, 3, 3, 4), (24, 32), mode="bilinear")
    image = ((smooth * 255).round() / 255).requires_grad_()
    reward = PromptAgreement(str(folder))
    found = reward(image, {"prompt": PROMPTS})
    pixels = [(x * 255).round().byte().permute(1, 2, 0).numpy() for x in image.detach()]
    processor: Any = CLIPImageProcessorPil.from_pretrained(folder)
    seen = processor(images=pixels, return_tensors="pt")["pixel_values"]
    words = tiny.tokenizer(WORDS)(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    model: Any = CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        expected = model(pixel_values=seen, **words).logits_per_image.diagonal()
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert torch.autograd.grad(found.sum(), image)[0].abs().mean() > 1e-4


def test_a_video_is_as_good_as_its_frames_on_average(folder):
    reward, video = PromptAgreement(str(folder)), torch.rand(2, 3, 3, SIDE, SIDE)
    each = torch.stack([reward(video[:, k], {"prompt": PROMPTS[:2]}) for k in range(3)])
    torch.testing.assert_close(reward(video, {"prompt": PROMPTS[:2]}), each.mean(0))


def test_what_cannot_be_compared_is_told_in_a_sentence(folder, tmp_path):
    images = torch.rand(1, 3, SIDE, SIDE)
    with pytest.raises(ValueError, match=r"images with their prompts, but got .* conditions \['label'\]"):
        PromptAgreement(str(folder))(images, {"label": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        PromptAgreement(str(folder))(images * 2 - 1, {"prompt": ["a"]})
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model"):
        PromptAgreement(str(tmp_path))(images, {"prompt": ["a"]})
    with pytest.raises(UsageError, match="looks at images, but the samples of this recipe are text"):
        find_reward("clip:x", {}, lambda x: [], 1)
    found = find_reward(f"clip:{folder}:0.3 + ink:2", {"ink": lambda x, c: x}, None, 1)
    assert isinstance(found, list) and isinstance(found[0].reward, PromptAgreement)
    assert found[0].reward.name == str(folder) and found[0].weight == 0.3


def head(path: Path, widths: tuple[int, ...], **metadata: str) -> Path:
    """A head whose layers have numbers of two digits, as dropout between them counts, too."""
    torch.manual_seed(1)
    layers = {}
    for i, (into, out) in enumerate(pairwise(widths)):
        layers[f"layers.{4 * i}.weight"] = torch.randn(out, into)
        layers[f"layers.{4 * i}.bias"] = torch.randn(out)
    save_file(layers, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize("activation", ["none", "relu"])
def test_a_head_reads_the_normalised_features_of_clip(folder, tmp_path, activation):
    from transformers import CLIPModel

    widths = (8, 6, 5, 4, 1)
    said = {} if activation == "none" else {"activation": activation}
    file = head(tmp_path / "head.safetensors", widths, **said)
    reward = find_reward(f"aesthetic:{folder}:{file}", {}, None, 1)
    assert isinstance(reward, Aesthetic)
    image = torch.rand(2, 3, SIDE, SIDE, requires_grad=True)
    found = reward(image, {"prompt": ["a", "b"]})
    model: Any = CLIPModel.from_pretrained(folder)
    mean, std = (torch.tensor(x)[:, None, None] for x in ([0.48, 0.45, 0.4], [0.26, 0.26, 0.27]))
    seen = model.vision_model(pixel_values=(image - mean) / std).pooler_output
    x = torch.nn.functional.normalize(model.visual_projection(seen), dim=1)
    torch.manual_seed(1)
    for i, (into, out) in enumerate(pairwise(widths)):
        x = x @ torch.randn(out, into).T + torch.randn(out)
        x = x.relu() if activation == "relu" and i < 3 else x
    torch.testing.assert_close(found, x[:, 0])
    assert torch.autograd.grad(found.sum(), image)[0].abs().sum() > 0
    video = torch.stack([image, image.flip(0)], 1)
    torch.testing.assert_close(reward(video, {}), found.mean().expand(2))


def test_a_head_that_does_not_fit_is_told(folder, tmp_path):
    file = head(tmp_path / "head.safetensors", (7, 3, 1))
    with pytest.raises(ValueError, match=r"reads 7 features, but .* has 8; take the CLIP model"):
        Aesthetic(f"{folder}:{file}")(torch.rand(1, 3, SIDE, SIDE), {})
    with pytest.raises(ValueError, match="linear layers down to one number, but got"):
        load_head(head(tmp_path / "wide.safetensors", (8, 3, 2)))
    with pytest.raises(ValueError, match="activation 'swish', which must be one of"):
        load_head(head(tmp_path / "swish.safetensors", (8, 1), activation="swish"))
    with pytest.raises(ValueError, match="needs a CLIP model and a head"):
        Aesthetic("model")
    found = find_reward(f"aesthetic:{folder}:{file}:0.5 + ink:2", {"ink": lambda x, c: x}, None, 1)
    assert isinstance(found, list) and isinstance(found[0].reward, Aesthetic) and found[0].weight == 0.5
