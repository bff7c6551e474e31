"""What `peers.py` has difftilt do, in a process of its own: make the pipeline, or tune it for some epochs."""

import json
import string
import sys
from typing import Any

import diffusers
import torch
import transformers
from accelerate import Accelerator
from peers_clock import report
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from difftilt.algorithms.ppo import PPO
from difftilt.domains.diffusers.lora import lora
from difftilt.domains.diffusers.pipeline import pipeline_policy
from difftilt.objective import Objective
from difftilt.training.fit import fit
from difftilt.training.settings import Training

library: Any = diffusers
LENGTH, WIDTH, ALPHA = 16, 32, 0.1


def make(folder: str) -> None:
    """A Stable Diffusion of random weights, 16 x 16 pixels large."""
    torch.manual_seed(0)
    letters = ["<pad>", "</s>", "<unk>", *dict.fromkeys(string.printable)]
    words = Tokenizer(models.WordLevel({t: i for i, t in enumerate(letters)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    marks: dict[str, Any] = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    text = transformers.CLIPTextConfig(
        vocab_size=len(letters), hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    unet = library.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, norm_num_groups=8, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), cross_attention_dim=WIDTH,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=8,
    )  # fmt: skip
    vae = library.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    scheduler = library.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=LENGTH, **marks)
    library.StableDiffusionPipeline(
        vae=vae, unet=unet, scheduler=scheduler, text_encoder=transformers.CLIPTextModel(text),
        tokenizer=tokenizer, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip


def run(asked: dict[str, Any]) -> None:
    """Epochs of DDPO."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    pipe = library.StableDiffusionPipeline.from_pretrained(asked["pipe"])
    pipe.set_progress_bar_config(disable=True)
    policy = pipeline_policy(pipe, asked["steps"], micro_batch=asked["micro"], guidance_scale=5.0, eta=1.0)
    reference = lora(policy, rank=4)
    objective = Objective(lambda image, cond: image.mean((1, 2, 3)), reference, ALPHA)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], 3e-4)
    training, accelerator = Training(rounds=1, batch=asked["batch"]), Accelerator(cpu=True)
    algorithm = PPO(clip=1e-4, epochs=1, minibatches=1, kl="reward")
    algorithm.checked = True
    cond = {"prompt": ["a photo"] * asked["batch"]}

    def epoch(number: int) -> None:
        list(fit(policy, objective, algorithm, [cond], optimizer, training, accelerator))

    report(epoch, asked["epochs"])


if __name__ == "__main__":
    make(sys.argv[2]) if sys.argv[1] == "make" else run(json.loads(sys.argv[2]))
