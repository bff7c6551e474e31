"""What `peers.py` has TRL do, in an environment of its own: tune the pipeline for some epochs."""

import json
import sys
from typing import Any

import torch
from accelerate import PartialState
from peers_clock import report
from trl import (  # pyright: ignore[reportMissingImports]  # in an environment of its own
    DDPOConfig,
    DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline,
)


def run(asked: dict[str, Any]) -> None:
    """Epochs of DDPO."""
    torch.set_num_threads(1)
    micro = asked["micro"]
    config = DDPOConfig(
        seed=0, num_epochs=1, sample_num_steps=asked["steps"], sample_eta=1.0, sample_guidance_scale=5.0,
        sample_batch_size=micro, sample_num_batches_per_epoch=asked["batch"] // micro, train_batch_size=micro,
        train_gradient_accumulation_steps=asked["batch"] // micro, train_num_inner_epochs=1, train_cfg=True,
        train_learning_rate=3e-4, train_clip_range=1e-4, mixed_precision="no", allow_tf32=False,
        save_freq=10**9,
    )  # fmt: skip
    PartialState(cpu=True)  # its logger asks for one
    pipe = DefaultDDPOStableDiffusionPipeline(asked["pipe"], use_lora=True)
    trainer = DDPOTrainer(
        config, lambda images, *_: (images.mean((1, 2, 3)), {}), lambda: ("a photo", {}), pipe
    )
    step = 0

    def epoch(number: int) -> None:
        nonlocal step
        step = trainer.step(number, step)

    report(epoch, asked["epochs"])


if __name__ == "__main__":
    run(json.loads(sys.argv[2]))
