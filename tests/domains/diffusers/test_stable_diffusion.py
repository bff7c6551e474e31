"""Stable Diffusion as a chain: equal to diffusers' own sampling, tuned by the unchanged PPO, with LoRA."""

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from paths import path_kl
from safetensors.torch import load_file, save_file
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from difftilt.algorithms.ppo import PPO
from difftilt.conditions import take
from difftilt.domains.diffusers.lora import LORA_FILE, load_lora, lora, save_lora
from difftilt.domains.diffusers.pipeline import pipeline_policy, step_of
from difftilt.domains.diffusers.recipe import load_pipeline
from difftilt.networks.adapters import without_adapters
from difftilt.objective import Objective
from difftilt.policy import Policy, path_log_prob, rollout
from difftilt.processes.noise import DDIM
from difftilt.shapes import Cond
from difftilt.training.fit import fit

PROMPTS = ["a cat", "a dog", "red"]


def encode(prompts: list[str]) -> Cond:
    return {"prompt": prompts}


def in_double(scheduler: Any) -> None:
    """diffusers computes its schedules in float32, and its coefficients from them."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()


def redness(image: Tensor, cond: Cond) -> Tensor:
    return (image[:, 0] - image[:, 1:].mean(1)).mean((1, 2))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [1.0, 0.3])
def test_every_step_is_the_schedulers_own(double, make_pipe, prediction_type, eta):
    pipe = make_pipe(prediction_type=prediction_type)
    in_double(pipe.scheduler)
    policy = pipeline_policy(pipe, steps=5, noise=DDIM(eta), guidance_scale=1.0)
    cond = encode(PROMPTS)
    own = copy.deepcopy(pipe.scheduler)
    own.set_timesteps(5)
    assert policy.steps == 5
    x = torch.randn(3, 4, 8, 8)
    for t, time in zip(range(5, 0, -1), own.timesteps, strict=True):
        with torch.no_grad():
            step = policy(x, torch.full((3,), t), cond)
            output = pipe.unet(x, time, pipe.encode_prompt(PROMPTS, "cpu", 1, False)[0]).sample
        ends = [own.step(output, time, x, eta=eta, variance_noise=torch.full_like(x, z)) for z in (0.0, 1.0)]
        mean, shifted = (end.prev_sample for end in ends)
        torch.testing.assert_close(step.mean, mean, rtol=0, atol=1e-10)
        torch.testing.assert_close(step.std, shifted - mean, rtol=0, atol=1e-10)
        x = step.sample()


def test_a_whole_guided_run_of_the_pipeline_is_the_chain_fed_the_same_noise(double, pipe):
    in_double(pipe.scheduler)
    policy = pipeline_policy(pipe, steps=5, guidance_scale=7.5, micro_batch=2)
    cond, latents = encode(PROMPTS), torch.randn(3, 4, 8, 8)
    settings = {"latents": latents, "num_inference_steps": 5, "guidance_scale": 7.5, "eta": 1.0}

    def run(kind: str) -> Tensor:
        noise = torch.Generator().manual_seed(7)
        return pipe(PROMPTS, **settings, generator=noise, output_type=kind).images

    x, noise = latents, torch.Generator().manual_seed(7)
    with torch.no_grad():
        for t in range(policy.steps, 0, -1):
            step = policy(x, torch.full((3,), t), cond)
            x = step.mean + step.std * torch.randn(x.shape, generator=noise)
        image = policy.decode(x, cond)
    torch.testing.assert_close(x, run("latent"), rtol=0, atol=1e-9)
    torch.testing.assert_close(image, torch.as_tensor(run("pt")), rtol=0, atol=1e-9)
    assert image.shape == (3, 3, 16, 16)
    assert image.min() >= 0 and image.max() <= 1


def tune(policy: Policy, reference: Policy, cond: Cond, rounds: int, alpha: float = 1e-3) -> list[dict]:
    parameters = [p for p in policy.parameters() if p.requires_grad]
    return list(
        fit(
            policy,
            Objective(redness, reference, alpha),
            PPO(epochs=1, minibatches=2),
            [cond] * rounds,
            torch.optim.AdamW(parameters, 1e-2, weight_decay=0),
            accelerator=Accelerator(cpu=True),
        )
    )


def test_ppo_tunes_the_adapters_and_nothing_else(pipe):
    policy = pipeline_policy(pipe, steps=3, guidance_scale=2.0, micro_batch=16)
    cond = encode(PROMPTS * 3)
    base = {name: p.detach().clone() for name, p in pipe.unet.named_parameters()}
    reference = lora(policy, rank=4)
    assert [name for name, p in policy.named_parameters() if p.requires_grad and "lora" not in name] == []
    assert not any(p.requires_grad for p in reference.parameters())
    assert all(p.requires_grad == ("lora" in name) for name, p in pipe.unet.named_parameters())

    path = rollout(policy, cond)
    assert path_kl(policy, reference, path).abs().max() == 0
    frozen = path_log_prob(reference, path).detach()
    assert frozen.equal(path_log_prob(policy, path).detach())

    rows = tune(policy, reference, cond, rounds=3)
    assert {"reward", "reward_se", "kl_nats", "objective", "objective_se"} <= rows[-1].keys()
    assert rows[0]["kl_nats"] == 0
    assert path_kl(policy, reference, path).sum(0).min() > 0
    assert path_log_prob(reference, path).detach().equal(frozen)
    for name, p in pipe.unet.named_parameters():
        if "lora" not in name:
            assert p.equal(base[name.replace(".base_layer", "")]), name


def test_the_reference_is_no_second_copy(pipe):
    policy = pipeline_policy(pipe, steps=4)
    own = sum(p.numel() for p in policy.parameters())
    reference = lora(policy)
    assert list(reference.parameters()) == []
    held = sum(b.numel() for b in reference.buffers())
    assert held < 1000 < own  # the grid
    network: Any = reference.network
    assert network.network.shared is step_of(policy.network)
    assert step_of(policy.network).denoisers["unet"] is pipe.unet


@pytest.mark.parametrize("inner", [False, True])
def test_gradients_through_the_reference_survive_recomputation(double, pipe, inner):
    plain = pipeline_policy(pipe, steps=4)
    small = pipeline_policy(pipe, steps=4, micro_batch=1)
    cond = encode(PROMPTS)
    without = lora(plain)
    for name, p in pipe.unet.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p)
    small_without = without_adapters(small, step_of(small.network))
    x = torch.randn(3, 4, 8, 8)

    def gradient(policy: Policy) -> Tensor:
        start = x.clone().requires_grad_()
        policy(start, torch.tensor([4, 3, 1]), cond).log_prob(x).sum().backward()
        return torch.as_tensor(start.grad)

    expected, tuned = gradient(without), gradient(plain)
    pipe.unet.train()  # diffusers checkpoints in training mode only
    if inner:
        pipe.unet.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(small_without), expected)
    torch.testing.assert_close(gradient(small), tuned)
    assert not torch.allclose(expected, tuned, rtol=1e-3)
    assert all(p.requires_grad == ("lora" in name) for name, p in pipe.unet.named_parameters())
    assert pipe.unet.is_gradient_checkpointing == inner


def test_saved_adapters_work_in_a_fresh_pipeline(pipe, make_pipe, tmp_path):
    policy = pipeline_policy(pipe, steps=4)
    cond = encode(PROMPTS)
    reference = lora(policy, rank=2)
    tune(policy, reference, cond, rounds=1)
    save_lora(policy, tmp_path)
    fresh = make_pipe()
    own = pipeline_policy(fresh, steps=4)
    x, t = torch.randn(3, 4, 8, 8), torch.tensor([4, 2, 1])
    base = own(x, t, encode(PROMPTS)).mean
    assert base.equal(reference(x, t, cond).mean)
    load_lora(own, tmp_path)
    assert own(x, t, encode(PROMPTS)).mean.equal(policy(x, t, cond).mean)
    assert not own(x, t, encode(PROMPTS)).mean.equal(base)


@pytest.mark.parametrize(
    "by_diffusers, dtype", [(False, torch.float32), (False, torch.bfloat16), (True, torch.float32)]
)
def test_training_goes_on_from_a_loaded_adapter(make_pipe, tmp_path, by_diffusers, dtype):
    def chain(load_from: Path | None = None) -> tuple[Any, Any, Cond]:
        pipe = make_pipe().to(dtype)
        if load_from and by_diffusers:
            pipe.load_lora_weights(load_from)  # which rounds to the precision of the UNet
        policy = pipeline_policy(pipe, steps=3, guidance_scale=1.0)
        if load_from and not by_diffusers:
            load_lora(policy, load_from)
        return pipe, policy, encode(PROMPTS)

    x, t = torch.randn(3, 4, 8, 8), torch.tensor([3, 2, 1])
    pipe, policy, cond = chain()
    lora(policy, rank=2)
    for name, p in pipe.unet.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    base, tuned = chain()[1](x, t, cond).mean, policy(x, t, cond).mean
    save_lora(policy, tmp_path / "one")

    pipe, policy, cond = chain(tmp_path / "one")
    with pytest.raises(ValueError, match="carries adapters of rank 2 already, but got rank 4"):
        lora(policy, rank=4)
    with pytest.raises(ValueError, match="must carry no adapters yet"):
        load_lora(policy, tmp_path / "one")
    reference = lora(policy)
    assert policy(x, t, cond).mean.equal(tuned)
    assert reference(x, t, cond).mean.equal(base) and not tuned.equal(base)
    trained = [p for p in policy.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert len(trained) == sum("lora" in name for name, _ in pipe.unet.named_parameters())
    tune(policy, reference, take(cond, torch.tensor([0, 1, 2, 0])), rounds=1)
    again = policy(x, t, cond).mean
    assert not again.equal(tuned)
    save_lora(policy, tmp_path / "two")
    _, policy, cond = chain(tmp_path / "two")
    assert policy(x, t, cond).mean.equal(again)


@pytest.mark.parametrize(
    "prefix", ["", "transformer.", "base_model.model.unet.", "unet.unet.", "text_encoder."]
)
def test_adapters_under_a_wrong_name_are_refused(pipe, make_pipe, tmp_path, prefix):
    policy = pipeline_policy(pipe, steps=4)
    lora(policy)
    save_lora(policy, tmp_path)
    weights = load_file(tmp_path / LORA_FILE)
    assert all(name.startswith("unet.") for name in weights)
    save_file({prefix + name.removeprefix("unet."): w for name, w in weights.items()}, tmp_path / LORA_FILE)
    fresh = make_pipe()
    with pytest.raises(ValueError, match="belong to no layer of the UNet"):
        load_lora(pipeline_policy(fresh, steps=4), tmp_path)
    assert not any("lora" in name for name, _ in fresh.unet.named_parameters())


def test_prompts_are_encoded_once_and_in_order(pipe):
    policy = pipeline_policy(pipe, steps=4)
    calls = []
    pipe.text_encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    x, t = torch.randn(1, 4, 8, 8).expand(4, -1, -1, -1), torch.full((4,), 2)
    mean = policy(x, t, encode(["b", "a", "b", "c"])).mean
    again = policy(x[:2], t[:2], encode(["c", "a"])).mean
    assert sum(calls) == 3 + 3  # each with the empty prompt of guidance
    assert mean[0].equal(mean[2]) and not mean[0].equal(mean[1])
    torch.testing.assert_close(again, mean[[3, 1]])
    assert not any(p.requires_grad for p in [*pipe.vae.parameters(), *pipe.text_encoder.parameters()])


def test_images_carry_gradients_in_any_micro_batch(double, pipe):
    latent = torch.randn(3, 4, 8, 8)

    def gradient(micro_batch: int | None) -> Tensor:
        policy = pipeline_policy(pipe, steps=4, micro_batch=micro_batch)
        x = latent.clone().requires_grad_()
        redness(policy.decode(x, encode(PROMPTS)), {}).sum().backward()
        return torch.as_tensor(x.grad)

    assert gradient(None).abs().max() > 0
    torch.testing.assert_close(gradient(None), gradient(1))


def test_a_half_precision_unet_has_full_precision_densities(pipe):
    policy = pipeline_policy(pipe.to(torch.bfloat16), steps=4)
    cond = encode(PROMPTS)
    reference = lora(policy)
    path = rollout(policy, cond)
    assert path.states.dtype == path.sample.dtype == torch.float32
    assert path_kl(policy, reference, path).abs().max() == 0
    assert all(p.dtype == torch.float32 for p in policy.parameters() if p.requires_grad)
    tune(policy, reference, take(cond, torch.tensor([0, 1, 2, 0])), rounds=1)
    assert path_kl(policy, reference, path).sum() > 0


def test_a_missing_library_is_named(monkeypatch, pipe):
    policy = pipeline_policy(pipe, steps=4)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"need diffusers; .* pip install 'difftilt\[diffusers\]'"):
        load_pipeline("anything", None)
    with pytest.raises(ImportError, match=r"need peft; .* pip install 'difftilt\[diffusers\]'"):
        lora(policy)
