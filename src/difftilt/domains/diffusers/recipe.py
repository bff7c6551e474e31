"""Pipelines of diffusers: tune LoRA on any text-to-image or text-to-video pipeline towards a reward."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from difftilt.algorithms.choices import AnyAlgorithm
from difftilt.algorithms.grpo import GRPO
from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.data.atomic import atomic_file
from difftilt.data.prompts import columns, read_prompts
from difftilt.domains.diffusers.checks import pipeline_checks
from difftilt.domains.diffusers.lora import coverage, how_to_load, load_lora, lora, save_lora
from difftilt.domains.diffusers.one_step import Unconditional, takes_images
from difftilt.domains.diffusers.pipeline import deployed, pipeline_policy, step_of
from difftilt.domains.diffusers.prompts import with_images
from difftilt.domains.diffusers.view import image_view
from difftilt.experiment.job import Job, tune
from difftilt.experiment.reward import find_reward
from difftilt.policy import Policy
from difftilt.rewards import image
from difftilt.rewards.text_image import LegibleText
from difftilt.settings import Count, OpenSettings, Positive, Unit, UsageError, check_settings
from difftilt.shapes import Cond
from difftilt.training.settings import Training

Rows = Sequence[Mapping[str, Any]]
ROWS = (  # of the card
    ("reward of the chain", "reward"),
    ("KL of the chain, nats", "kl_nats"),
    ("J", "objective"),
    ("reward of `pipe(...)`", "deployed_reward"),
)
ALGORITHM = PPO(epochs=1, minibatches=2, advantage="leave_one_out")
TRAINING = Training(rounds=50, batch=32, learning_rate=3e-4, evaluate=32, save_every=5)
REWARDS = {
    "jpeg": partial(image.jpeg_bytes, upscale=1),
    "png": partial(image.png_bytes, upscale=1),
    "symmetry": image.symmetry,
    "ocr": LegibleText(),
}


@dataclass(frozen=True)
class Adapters:
    """What is tuned of a pipeline.

    Args:
        lora_rank: Rank of the update of each layer, at least 1.
        lora_targets: Ends of the names of the layers that get one; by default those of attention.
        adapter: A folder of an earlier run's adapter to go on with.
        checkpointing: Compute the denoiser's activations again in the backward pass, for less memory.
    """

    lora_rank: Count = 16
    lora_targets: tuple[str, ...] = ()
    adapter: Path | None = None
    checkpointing: bool = False

    def __post_init__(self):
        check_settings(self)


ADAPTERS = Adapters()


def pipeline(
    algorithm: AnyAlgorithm = ALGORITHM,
    pipe: str = "",
    prompts: Path | None = None,
    held_out: Unit = 0.2,
    reward: str = "jpeg",
    alpha: Positive = 1e-3,
    target_kl: Positive | None = None,
    steps: Count = 20,
    noise_level: Positive | None = None,
    call: OpenSettings = (),
    adapters: Adapters = ADAPTERS,
    samples_per_prompt: Count = 8,
    micro_batch: Count | None = None,
    dtype: Literal["float32", "bfloat16"] | None = None,
    training: Training = TRAINING,
) -> Job:
    """Tunes LoRA on a pipeline of diffusers, of images or videos, towards a reward.

    The run folder gets the adapter as plain diffusers loads it, with a card.

    Args:
        algorithm: How to tune.
        pipe: The pipeline: a folder, or a name on the Hugging Face hub.
        prompts: A file of prompts: text with one a line; CSV with a column `prompt`, and JSON lines with
            objects that have one. What else a row holds reaches the reward by its name, and
            `negative_prompt` the pipeline, as does `image`, the file of the picture that it is to edit, from
            the folder of the prompts on. Not for pipelines without prompts.
        held_out: Share of the prompts, in [0, 1], that judge the model and are never trained on; with 0, or a
            single prompt, all do both.
        reward: What to maximise: `jpeg` or `png`, minus the kilobytes of the image; `symmetry`, minus the
            mean squared difference from the mirror image; `ocr`, how much of the text in column `text`, or in
            double quotes in the prompt, can be read, 0 to 1; clip:FOLDER_OR_ID, agreement with the prompt by
            a CLIP model such as yuvalkirstain/PickScore_v1; aesthetic:CLIP:FILE, a head on a CLIP model's
            features; http://HOST/v1/chat/completions#MODEL, what a model that sees answers; or FILE.py:NAME
            of images (batch, 3, height, width) or videos (batch, frames, 3, height, width) in [0, 1],
            http://HOST/PATH, or
            command:COMMAND.
        alpha: Weight of the KL to the pretrained model, above 0, in units of the reward per nat.
        target_kl: KL to the pretrained model that tuning shall end with, above 0, in nats; alpha is then only
            where the search for the right one starts.
        steps: Inference steps of the pipeline, at least 2.
        noise_level: Of the chain, above 0: 1.41 is that of DDPM, and less is nearer to the deterministic
            sampler. By default the scheduler's own, and 0.7 for flows.
        call: What the pipeline's call is given with every prompt, such as --call.height 512
            --call.guidance-scale 4.5.
        adapters: What is tuned.
        samples_per_prompt: Samples per prompt and round, at least 1; of grpo it is its group size.
        micro_batch: Rows that pass through the network or the decoder at a time, at least 1; all by default.
        dtype: Precision of the weights; by default bfloat16 on a GPU, and float32 elsewhere.
        training: How long and how fast to train.
    """
    rows, settings = [] if prompts is None else read_prompts(prompts), call_settings(call)
    loaded = load_pipeline(pipe, dtype)
    policy = pipeline_policy(loaded, steps, noise_level=noise_level, micro_batch=micro_batch, **settings)
    reference = adapted(policy, adapters, training.seed)
    view, each = image_view(), algorithm.group_size if isinstance(algorithm, GRPO) else samples_per_prompt
    learned, judged = divided(policy, shown(rows, prompts, loaded), held_out)
    return tune(
        policy,
        find_reward(reward, REWARDS, view.spell, training.reward_timeout),
        algorithm,
        alpha,
        training,
        name=reward,
        reference=reference,
        target_kl=target_kl,
        cond=partial(asked, learned, each),
        held_out=partial(in_turn, judged),
        view=view,
        export=partial(export, policy, loaded, pipe, reward),
        checks=partial(pipeline_checks, policy, loaded, steps, settings),
        deployed=partial(deployed, policy),
    )


def shown(rows: Rows, prompts: Path | None, loaded: Any) -> Rows:
    """The rows of a file of prompts, with their images where the pipeline edits some."""
    return with_images(rows, prompts.parent) if prompts is not None and takes_images(loaded) else rows


def adapted(policy: Policy, adapters: Adapters, seed: int) -> Policy:
    """Adds adapters to a chain, tells which layers have them, and returns the chain without."""
    if adapters.adapter is not None:
        load_lora(policy, adapters.adapter)
    with torch.random.fork_rng(devices=[]):  # fresh adapters are those of the seed
        torch.manual_seed(seed)
        rank = None if adapters.adapter is not None else adapters.lora_rank
        reference = lora(policy, rank, adapters.lora_targets or None)
    print(coverage(policy), file=sys.stderr, flush=True)
    if adapters.checkpointing:
        for denoiser in step_of(policy.network).denoisers.values():
            checkpointed(denoiser)
    return reference


def load_pipeline(name: str, dtype: str | None) -> Any:
    """A pipeline from a folder or the hub, on this process's device; weights come from safetensors only.

    Raises:
        UsageError: In one sentence, if there is none.
    """
    if not name:
        raise UsageError("a pipeline is needed: --pipe FOLDER, or a name on the Hugging Face hub")
    if Path(name).is_file():
        raise UsageError(f"{name} is a file, but a pipeline is a folder, or a name on the Hugging Face hub")
    try:
        import diffusers
    except ImportError as error:
        message = "pipelines need diffusers; install it with pip install 'difftilt[diffusers]'"
        raise ImportError(message) from error
    gpu = torch.cuda.is_available()
    precision = getattr(torch, dtype or ("bfloat16" if gpu else "float32"))
    kind: Any = diffusers.DiffusionPipeline
    try:
        loaded = kind.from_pretrained(name, torch_dtype=precision, use_safetensors=True)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"{name} cannot be loaded as a pipeline of diffusers ({why})") from error
    return loaded.to(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu")


def call_settings(call: Sequence[str]) -> dict[str, Any]:
    """Settings of a pipeline's call from `name=value`, where values are JSON, or else text."""
    settings: dict[str, Any] = {}
    for text in call:
        name, equals, value = text.partition("=")
        if not equals or not name.replace("-", "_").isidentifier():
            raise UsageError(f"a setting of the call is --call.NAME VALUE, but got {text!r}")
        try:
            settings[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            settings[name.replace("-", "_")] = value
    return settings


def checkpointed(denoiser: Any) -> None:
    """Lets a denoiser compute its activations again, which diffusers does in training mode only."""
    denoiser.enable_gradient_checkpointing()
    denoiser.train()
    for part in denoiser.modules():
        if isinstance(part, torch.nn.modules.dropout._DropoutNd):
            part.p = 0.0


def divided(policy: Policy, rows: Rows, held_out: float) -> tuple[Rows, Rows]:
    """The prompts to learn from, and those that judge; none of a pipeline that takes none."""
    if isinstance(step_of(policy.network), Unconditional):
        if rows:
            raise UsageError("this pipeline takes no prompts; leave --prompts out")
        return (), ()
    if not rows:
        raise UsageError("prompts are needed: --prompts FILE, with a prompt a line, or CSV or JSON lines")
    count = min(max(round(held_out * len(rows)), held_out > 0), len(rows) - 1)
    if not count:
        return rows, rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    return [rows[i] for i in sorted(order[count:])], [rows[i] for i in sorted(order[:count])]


def asked(rows: Rows, each: int, count: int) -> Cond:
    """The conditions of a round: prompts drawn at random, as many times each as they are sampled."""
    if not rows:
        return unconditional(count)
    drawn: list[int] = []
    while len(drawn) * each < count:
        drawn += torch.randperm(len(rows)).tolist()
    return columns([rows[i] for i in drawn[: -(-count // each)] for _ in range(each)][:count])


def in_turn(rows: Rows, count: int) -> Cond:
    """The same number of samples, up to one, of each prompt, which lie side by side."""
    if not rows:
        return unconditional(count)
    return columns([rows[i] for i in sorted(k % len(rows) for k in range(count))])


def export(
    policy: Policy, loaded: Any, pipe: str, reward: str, folder: Path, summary: Mapping[str, Any]
) -> None:
    """Writes the adapter, and a card that says how plain diffusers loads it and what it does."""
    save_lora(policy, folder)
    kind, where = type(loaded).__name__, "THIS_FOLDER"
    lines = "\n".join(how_to_load(policy, loaded, where))
    numbers = "\n".join(
        f"| {name} | {summary['before'][key]:.4g} ± {summary['before'][f'{key}_se']:.2g} |"
        f" {summary[key]:.4g} ± {summary[f'{key}_se']:.2g} |"
        for name, key in ROWS
    )
    text = f"""# LoRA of {pipe}, tuned towards {reward}

```python
import diffusers

pipe = diffusers.{kind}.from_pretrained({pipe!r})
{lines}
```

{coverage(policy)}

| on prompts that judge | pretrained | tuned |
| --- | --- | --- |
{numbers}

alpha {summary["alpha"]:.4g}, {summary["reward_calls"]} reward calls. Made by difftilt.
"""
    with atomic_file(folder / "README.md") as file:
        file.write_text(text)
