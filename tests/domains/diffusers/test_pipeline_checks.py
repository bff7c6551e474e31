"""What doctor finds in pipelines: faults of adapters and of what the network predicts, and no false alarm."""

import re
from functools import partial
from typing import Any

import pytest
import tiny
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from difftilt.domains.diffusers.checks import kept_of_a_row, pipeline_checks
from difftilt.domains.diffusers.lora import lora
from difftilt.domains.diffusers.pipeline import pipeline_policy
from difftilt.domains.diffusers.recipe import checkpointed
from difftilt.experiment.doctor import examine
from difftilt.experiment.job import Job, tune

STEPS = 2


def red(image: Any, cond: Any) -> Any:
    image = image.movedim(image.ndim - 3, 1).flatten(2)  # of videos, too
    return 100 * (image[:, 0] - image[:, 1:].mean(1)).mean(1)


def job(name: str, fault: str = "") -> Job:
    pipe, call = tiny.build(name)
    policy = pipeline_policy(pipe, STEPS, **call)
    reference = lora(policy, rank=2)
    if fault == "prediction":
        policy.prediction_type = "v_prediction"
    if fault == "untrained":
        policy.requires_grad_(False)
    if fault == "dropout":
        for part in pipe.unet.modules():
            if isinstance(part, torch.nn.ModuleDict) and "default" in part and "Identity" in str(part):
                part["default"] = torch.nn.Dropout(0.1)
        for name, p in policy.named_parameters():
            p.data += 0.1 * ("lora_B" in name)
    if fault == "remembers":
        count = iter(range(1000))
        pipe.unet.register_forward_hook(lambda module, args, output: (output[0] + next(count),))
    checks = partial(pipeline_checks, policy, pipe, STEPS, call)
    cond = lambda count: {"prompt": (["a cat", "a dog"] * count)[:count]}  # noqa: E731
    return tune(policy, red, alpha=0.1, reference=reference, cond=cond, checks=checks)


@pytest.mark.parametrize(
    "fault, said",
    [
        ("prediction", "do they agree on what the network predicts .v_prediction.[?]"),
        ("untrained", "Nothing of the policy trains"),
        ("dropout", "layers of dropout are active"),
        ("remembers", "The output of step 1 of 2 .* differs"),
    ],
)
def test_a_fault_is_named(fault, said):
    texts = "\n".join(finding.text for finding in examine(job("sd1", fault)) if finding.wrong)
    assert re.search(said, texts), texts


@pytest.mark.parametrize(
    "name", [pytest.param(k, marks=() if k in ("sd1", "qwen") else pytest.mark.slow) for k in tiny.FAMILIES]
)
def test_a_sound_pipeline_gives_no_alarm(name):
    if name in ("ddpm", "ddim"):
        pytest.skip("they take no prompts, and are checked in tests/domains/diffusers/test_pipeline.py")
    found = list(examine(job(name)))
    assert [finding.text for finding in found if finding.wrong] == []
    told = "\n".join(finding.text for finding in found)
    for what in (
        "those of a whole run, up to 0 of",
        "LoRA of rank 2 on",
        "all that is tuned",
        "spreads by",
        "of 80 GiB.",
    ):
        assert what in told


def test_what_a_row_keeps_is_less_where_activations_are_computed_again():
    pipe, call = tiny.build("sd1")
    policy = pipeline_policy(pipe, STEPS, **call)
    weights = {p.data_ptr() for p in pipe.unet.parameters()}
    assert kept_of_a_row(policy.requires_grad_(False), weights) == 0
    lora(policy, rank=2)
    kept = kept_of_a_row(policy, weights)
    checkpointed(pipe.unet)
    assert 0 < kept_of_a_row(policy, weights) < kept / 2
