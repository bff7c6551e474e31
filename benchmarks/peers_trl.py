"""What `peers.py` has TRL do, in an environment of its own: tune the pipeline for some epochs."""

import json
import resource
import sys
import time
from typing import Any

import torch
from accelerate import PartialState
from trl import (  # pyright: ignore[reportMissingImports]  # in an environment of its own
    DDPOConfig,
    DDPOTrainer,
    DefaultDDPOStableDiffusionPipeline,
)


def run(folder: str, asked: dict[str, Any]) -> None:
    """Epochs of DDPO; the first one, which loads what it needs, is not timed."""
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
    pipe = DefaultDDPOStableDiffusionPipeline(folder, use_lora=True)
    trainer = DDPOTrainer(
        config, lambda images, *_: (images.mean((1, 2, 3)), {}), lambda: ("a photo", {}), pipe
    )
    spent, step = [], 0
    for epoch in range(asked["epochs"] + 1):
        start = time.process_time(), time.perf_counter()
        step = trainer.step(epoch, step)
        if epoch:
            spent.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    cpu, wall = min(spent)[0], min(x[1] for x in spent)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_seconds": cpu, "seconds": wall, "peak_mib": peak}))


if __name__ == "__main__":
    run(sys.argv[2], json.loads(sys.argv[3]))
