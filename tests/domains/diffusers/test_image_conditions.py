"""Pipelines that edit: one image per row is a condition, and draws what `pipe(...)` draws of it."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from difftilt.domains.diffusers.pipeline import deployed, pipeline_policy
from difftilt.domains.diffusers.recipe import pipeline
from difftilt.policy import level
from difftilt.processes.noise import Euler
from difftilt.settings import UsageError
from difftilt.training.settings import Training

STEPS = 2


def picture(colour: str, size: tuple[int, int] = (32, 32)) -> Image.Image:
    made = Image.new("RGB", size, colour)
    made.paste("white", (0, 0, 9, 17))
    return made


def test_rows_with_an_image_each_are_those_of_the_pipelines_own_call():
    pipe, call = tiny.build("kontext")
    policy = pipeline_policy(pipe, STEPS, noise=Euler(1e-6), **call)
    prompts, images = ["a cat", "a cat", "a dog"], [picture("red"), picture("blue"), picture("red", (32, 16))]
    torch.manual_seed(0)
    x_T, cond = torch.randn(3, *policy.shape), {"prompt": prompts, "image": images}
    x = x_T
    with torch.no_grad():
        for t in range(policy.steps, 0, -1):
            x = policy(x, level(x, t), cond).mean
        found = policy.decode(x, cond)
    each = []
    for row in range(3):
        asked = {"prompt": prompts[row], "image": images[row], "latents": x_T[row : row + 1]}
        made = pipe(**asked, num_inference_steps=STEPS, output_type="pt", return_dict=False, **call)
        each.append(made[0])
    torch.testing.assert_close(found, torch.cat(each), rtol=0, atol=1e-4)
    torch.testing.assert_close(deployed(policy, x_T, cond), torch.cat(each), rtol=0, atol=1e-4)
    one = x_T[:1].expand(2, *policy.shape)  # the image makes a difference, the rest is the same
    with torch.no_grad():
        both = policy(one, level(one, policy.steps), {"prompt": ["a cat"] * 2, "image": images[:2]}).mean
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_a_file_of_prompts_names_images(tmp_path: Path):
    pipe, call = tiny.build("kontext")
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for colour in ("red", "blue"):
        picture(colour).save(tmp_path / "pictures" / f"{colour}.png")
    rows = [{"prompt": "brighter", "image": f"pictures/{name}.png"} for name in ("red", "blue")]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    settings = tuple(f"{name}={json.dumps(value)}" for name, value in call.items())
    common = {"pipe": str(tmp_path / "model"), "steps": STEPS, "call": settings, "held_out": 0.5}
    job = pipeline(prompts=file, training=Training(rounds=1, batch=4, evaluate=2), **common)
    asked = job.judging(2)
    assert Path(asked["image"][0]).is_absolute()
    seen = job.objective.sample(job.policy, asked)
    assert seen.reward.isfinite().all() and job.deployed is not None
    assert job.deployed(seen.path.states[0], asked).shape == seen.path.sample.shape
    (tmp_path / "pictures" / "red.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"prompt 'brighter': .*red\.png cannot be read as an image"):
        pipeline(prompts=file, **common)


def test_a_pipeline_that_starts_from_an_image_is_refused():
    pipe, _ = tiny.build("sd1")
    parts = {**pipe.components, "requires_safety_checker": False}
    with pytest.raises(ValueError, match="starts from a noised image, which no chain here does"):
        pipeline_policy(tiny.library().StableDiffusionImg2ImgPipeline(**parts), STEPS)
