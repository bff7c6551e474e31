"""What tuning costs at real sizes on one GPU: a round against bare passes, memory against doctor's plan.

    python benchmarks/gpu.py [--only unet transformer] [--out FILE.json]
    python benchmarks/gpu.py --tiny        # the same code on the CPU, on networks of a few thousand weights

Weights are random, and prompts are embeddings of random numbers: neither makes a difference to time and
memory. A round is PPO of LoRA on 512 x 512 images, by a reward that costs nothing. At most ten minutes.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import Accelerator

from difftilt.algorithms.ppo import PPO
from difftilt.domains.diffusers.checks import planned
from difftilt.domains.diffusers.lora import lora
from difftilt.domains.diffusers.pipeline import pipeline_policy, step_of
from difftilt.objective import Objective
from difftilt.policy import path_log_prob, rollout
from difftilt.training.fit import fit
from difftilt.training.settings import Training

RESULTS = Path(__file__).parent / "results" / "gpu.json"
library: Any = diffusers
SEED, STEPS, BATCH, MICRO, LENGTH = 0, 10, 8, 4, 77
LIMIT = 540.0  # seconds, after which no other part begins


def vae(tiny: bool, channels: int) -> Any:
    """The decoder of Stable Diffusion, of 8 x 8 pixels per latent; of random weights."""
    widths = (8, 8, 8, 8) if tiny else (128, 256, 512, 512)
    return library.AutoencoderKL(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=channels, layers_per_block=1 if tiny else 2,
        norm_num_groups=4 if tiny else 32, shift_factor=0.06, scaling_factor=0.18,
    )  # fmt: skip


def unet(tiny: bool) -> Any:
    """A pipeline with the UNet of Stable Diffusion 1.5."""
    small: dict[str, Any] = {"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    width = 16 if tiny else 768
    denoiser = library.UNet2DConditionModel(
        sample_size=8 if tiny else 64, cross_attention_dim=width, attention_head_dim=4 if tiny else 8,
        **(small if tiny else {}),
    )  # fmt: skip
    scheduler = library.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                      clip_sample=False, set_alpha_to_one=False, steps_offset=1)  # fmt: skip
    pipe = library.StableDiffusionPipeline(
        vae=vae(tiny, 4), text_encoder=None, tokenizer=None, unet=denoiser, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return encoding(pipe, [(LENGTH, width)])


def transformer(tiny: bool) -> Any:
    """A pipeline with the transformer of Stable Diffusion 3 medium, of two billion weights."""
    heads, layers = (2, 1) if tiny else (24, 24)
    width, pooled = (16, 16) if tiny else (4096, 2048)
    denoiser = library.SD3Transformer2DModel(
        sample_size=8 if tiny else 128, patch_size=2, in_channels=16, out_channels=16, num_layers=layers,
        attention_head_dim=8 if tiny else 64, num_attention_heads=heads, joint_attention_dim=width,
        caption_projection_dim=heads * (8 if tiny else 64), pooled_projection_dim=pooled,
        pos_embed_max_size=16 if tiny else 192,
    )  # fmt: skip
    pipe = library.StableDiffusion3Pipeline(
        transformer=denoiser, scheduler=library.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(tiny, 16),
        text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None, text_encoder_3=None,
        tokenizer_3=None,
    )  # fmt: skip
    return encoding(pipe, [(LENGTH, width), (pooled,)])


def encoding(pipe: Any, shapes: list[tuple[int, ...]]) -> Any:
    """The pipeline, with random numbers as the embeddings of prompts and of negative ones, in turn."""

    def encode_prompt(prompt: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        count = 1 if isinstance(prompt, str) else len(prompt)
        generator = torch.Generator().manual_seed(SEED)
        denoiser = pipe.unet if "unet" in pipe.components else pipe.transformer
        drawn = [torch.randn(1, *shape, generator=generator) for shape in shapes for _ in range(2)]
        return tuple(x.expand(count, *x.shape[1:]).to(denoiser.device, denoiser.dtype) for x in drawn)

    pipe.encode_prompt = encode_prompt
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bright(image: torch.Tensor, cond: Any) -> torch.Tensor:
    return image.mean((1, 2, 3))


def seconds(run: Any) -> float:
    """Of a call, once the device is done."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def bare(policy: Any, cond: Any) -> tuple[float, float]:
    """Seconds of a micro-batch through the network: forward alone, and forward and backward."""
    x = policy.initial(cond).sample()
    t = torch.full((len(x),), policy.steps, device=x.device)
    time_of = policy.time[t]

    def forward() -> None:
        with torch.no_grad():
            policy.network(x, time_of, cond)

    def both() -> None:
        policy.network(x, time_of, cond).float().square().mean().backward()

    found = []
    for run in (forward, both):
        run()
        found.append(min(seconds(run) for _ in range(3)))
    policy.zero_grad()
    return found[0], found[1]


def measure(name: str, tiny: bool, compiled: bool) -> dict[str, Any]:
    """One row: a network, as it is or compiled."""
    torch.manual_seed(SEED)
    gpu = torch.cuda.is_available() and not tiny
    pipe = {"unet": unet, "transformer": transformer}[name](tiny)
    pipe = pipe.to("cuda", torch.bfloat16) if gpu else pipe
    side, steps = (64, 3) if tiny else (512, STEPS)
    policy = pipeline_policy(pipe, steps, micro_batch=MICRO, guidance_scale=1.0, height=side, width=side)
    reference = lora(policy, rank=16)
    denoiser = next(iter(step_of(policy.network).denoisers.values()))
    size = sum(p.numel() for p in denoiser.parameters())
    fixed, row = planned(policy, pipe)
    if compiled:
        denoiser.compile()
    cond, part = {"prompt": ["a photo"] * BATCH}, {"prompt": ["a photo"] * MICRO}
    path = rollout(policy, cond)
    again = path_log_prob(policy, path) - path.log_prob
    forward, both = bare(policy, part)
    objective = Objective(bright, reference, 1e-3)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 1e-4)
    training, accelerator = Training(rounds=1, batch=BATCH), Accelerator(cpu=not gpu)

    def a_round() -> None:
        algorithm = PPO(epochs=1, minibatches=2)
        algorithm.checked = True
        list(fit(policy, objective, algorithm, [cond], optimizer, training, accelerator))

    a_round()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    took = [seconds(a_round) for _ in range(1 if tiny else 3)]
    # drawn by policy and reference, then once more with its gradient
    parts = policy.steps * BATCH / MICRO
    passes = 2 * parts * forward + parts * both
    peak = torch.cuda.max_memory_allocated() if gpu else None
    plan = fixed + MICRO * row
    return {
        "network": name, "weights": size, "seed": SEED, "compiled": compiled, "steps": steps, "batch": BATCH,
        "micro_batch": MICRO, "side": side, "seconds_per_round": took, "seconds_of_bare_passes": passes,
        "share_of_bare_passes": passes / min(took), "planned_bytes": plan, "peak_bytes": peak,
        "peak_over_plan": None if peak is None else peak / plan, "precision": str(denoiser.dtype),
        "largest_log_ratio_nats": again.abs().max().item(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=("unet", "transformer"), default=("unet", "transformer"))
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU, to try the code")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        sys.exit("this benchmark needs a GPU that CUDA knows, and there is none here; --tiny tries its code")
    started, rows = time.monotonic(), []
    for name in options.only:
        for compiled in (False,) if options.tiny else (False, True):
            if time.monotonic() - started > LIMIT:
                print(f"{name}, compiled {compiled}: left out, since ten minutes are nearly over")
                continue
            rows.append(measure(name, options.tiny, compiled))
            print(json.dumps(rows[-1]), flush=True)
    device = torch.cuda.get_device_name() if not options.tiny else platform.processor() or platform.machine()
    out = options.out or (None if options.tiny else RESULTS)
    if out is not None:
        about = {"device": device, "torch": torch.__version__, "diffusers": library.__version__}
        out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
