"""Pipelines of all families: steps and chains are their own, adapters reload, and training helps."""

import copy
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from paths import path_kl
from torch import Tensor

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from difftilt.algorithms.backprop import Backprop
from difftilt.algorithms.ppo import PPO
from difftilt.domains.diffusers.lora import coverage, how_to_load, load_lora, lora, save_lora
from difftilt.domains.diffusers.one_step import ANY
from difftilt.domains.diffusers.pipeline import deployed, pipeline_policy, step_of
from difftilt.domains.diffusers.self_check import check_step, watched
from difftilt.objective import Objective
from difftilt.policy import level, path_log_prob
from difftilt.processes.noise import DDIM, Euler
from difftilt.shapes import Cond
from difftilt.training.fit import fit
from difftilt.training.seeds import seed_round
from difftilt.training.settings import Training

STEPS = 3


def families(*quick: str) -> Any:
    """All families, of which the others than these are slow."""
    marks = {name: () if name in quick else pytest.mark.slow for name in tiny.FAMILIES}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


COND: Cond = {"prompt": ["a cat", "a dog", "red sky"]}


def red(image: Tensor, cond: Cond) -> Tensor:
    image = image.movedim(image.ndim - 3, 1).flatten(2)  # of videos, too
    return 100 * (image[:, 0] - image[:, 1:].mean(1)).mean(1)


def chain(name: str, **settings: Any) -> tuple[Any, Any, dict[str, Any]]:
    pipe, call = tiny.build(name)
    policy = pipeline_policy(pipe, STEPS, **{"micro_batch": 4, **settings}, **call)
    return policy, pipe, call


@cache
def tuned(name: str) -> tuple[Any, Any, Any, dict[str, Any]]:
    """A chain with adapters that are not zero, and its reference."""
    policy, pipe, call = chain(name)
    reference = lora(policy, rank=2)
    generator = torch.Generator().manual_seed(0)
    for key, p in policy.named_parameters():
        if "lora_B" in key:
            p.data = 0.2 * torch.randn(p.shape, generator=generator)
    return policy, reference, pipe, call


def drawn(pipe: Any, call: dict[str, Any]) -> Tensor:
    return watched(pipe, STEPS, call)[2]


@families("qwen", "wan22")
def test_a_single_step_is_that_of_a_whole_run_bit_for_bit(name):
    policy, pipe, call = chain(name)
    assert check_step(step_of(policy.network), pipe, watched(pipe, STEPS, call)) == 0
    assert "encode_prompt" not in vars(pipe) or name in tiny.WITHOUT_ENCODERS  # which are tiny's own
    assert type(pipe).__module__.startswith("diffusers")


@families("sdxl", "flux2", "zimage", "ddim")
def test_a_chain_without_noise_draws_what_the_pipeline_draws(name):
    if name == "ddpm":
        pytest.skip("it draws noise of its own at every step")
    steps = 4 if name == "cogvideox" else STEPS  # its timesteps are rounded unless they divide 1000
    pipe, call = tiny.build(name)
    flow = isinstance(pipe.scheduler, tiny.library().FlowMatchEulerDiscreteScheduler)
    policy = pipeline_policy(pipe, steps, noise=Euler(1e-6) if flow else DDIM(1e-6), **call)
    seen, _, image = watched(pipe, steps, call)
    x = seen[0][0]
    assert len(seen) == steps
    for t in range(policy.steps, 0, -1):
        x = policy(x, level(x, t), {"prompt": [ANY]}).mean
    torch.testing.assert_close(policy.decode(x, {"prompt": [ANY]}), image, rtol=0, atol=1e-5)


@families("sd3", "wan22")
def test_adapters_tune_the_pipeline_and_reload_into_plain_diffusers(name, tmp_path):
    policy, reference, pipe, call = tuned(name)
    x, t = torch.randn(3, *policy.shape), torch.tensor([1, policy.steps, 1])
    bare = chain(name)[0]
    own, base = policy(x, t, COND).mean, reference(x, t, COND).mean
    assert base.equal(bare(x, t, COND).mean) and not own.equal(base)
    assert policy.decode(x, COND).equal(bare.decode(x, COND))  # the reward is a fixed function of x_0
    trained = [key for key, p in policy.named_parameters() if p.requires_grad]
    assert trained and all("lora" in key for key in trained)
    assert {key.split(".")[3] for key in trained} == set(step_of(policy.network).denoisers)
    assert list(reference.parameters()) == []
    assert "LoRA of rank 2 on" in coverage(policy)

    save_lora(policy, tmp_path)
    fresh, _ = tiny.build(name)
    known = {"pipe": fresh}
    assert not drawn(fresh, call).equal(drawn(pipe, call))
    for line in how_to_load(policy, fresh, tmp_path):
        exec(line, known)
    assert drawn(fresh, call).equal(drawn(pipe, call))

    again = chain(name)[0]
    load_lora(again, tmp_path)
    second = lora(again)
    assert again(x, t, COND).mean.equal(own) and second(x, t, COND).mean.equal(base)


@families("sdxl", "qwen")
def test_what_is_deployed_is_the_pipelines_own_call_with_the_tuned_weights(name):
    if name == "ddpm":
        pytest.skip("it has drawn x_T from the generator of its steps")
    policy, _, pipe, call = tuned(name)
    seen, _, image = watched(pipe, STEPS, call)
    x, cond = torch.cat([seen[0][0], torch.randn(1, *policy.shape)]).float(), {"prompt": [ANY, "a dog"]}
    own = deployed(policy, x, cond)
    torch.testing.assert_close(own[:1], image.float(), rtol=0, atol=1e-5)
    untuned = drawn(tiny.build(name)[0], call).float()
    assert not torch.allclose(own[:1], untuned, rtol=0, atol=1e-5)
    assert not torch.allclose(own, policy.decode(x, cond), atol=1e-2)


@families("qwen")
def test_ratios_start_at_one_and_both_ways_to_train_raise_the_reward(name):
    cond: Cond = {"prompt": ["a cat", "a dog"] * 4}
    training = Training(rounds=1, batch=8)

    def trained(algorithm: Any, rate: float) -> tuple[Any, Objective, Any]:
        policy = chain(name)[0]
        reference = lora(policy, rank=2)
        objective = Objective(red, reference, 1e-5)
        seed_round(training.seed, 0)
        seen = objective.sample(policy, cond)
        assert path_kl(policy, reference, seen.path).abs().max() == 0
        again = path_log_prob(policy, seen.path) - seen.path.log_prob
        assert again.abs().max() < 1e-4 * seen.path.log_prob.abs().max()
        weights = [p for p in policy.parameters() if p.requires_grad]
        optimizer, accelerator = torch.optim.Adam(weights, rate), Accelerator(cpu=True)
        list(fit(policy, objective, algorithm, [cond], optimizer, training, accelerator))
        return policy, objective, seen

    policy, _, seen = trained(PPO(epochs=1, minibatches=2), 1e-4)
    log_w = (path_log_prob(policy, seen.path) - seen.path.log_prob).sum(0)
    assert ((seen.reward - seen.reward.mean()) * log_w).mean() > 0  # what earned more has become likelier
    policy, objective, seen = trained(Backprop(minibatches=4), 1e-3)
    seed_round(training.seed, 0)
    gain = objective.sample(policy, cond).reward - seen.reward  # from the same noise
    assert gain.median() > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, call",
    [
        ("sd3", {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.3}),
        ("zimage", {"cfg_truncation": 0.5}),
    ],
)
def test_what_a_pipeline_does_at_some_of_its_steps_only_is_done_there(name, call):
    pipe, known = tiny.build(name)
    policy = pipeline_policy(pipe, 5, **known | call)
    assert check_step(step_of(policy.network), pipe, watched(pipe, 5, known | call)) == 0


@pytest.mark.slow
def test_a_pipeline_that_counts_its_steps_and_cannot_skip_any_is_refused():
    pipe, call = tiny.build("lumina2")
    with pytest.raises(ValueError, match=r"the output of step \d of 5 .* differs from that of a whole run"):
        pipeline_policy(pipe, 5, **{**call, "cfg_trunc_ratio": 0.25})


def test_a_negative_prompt_of_a_row_takes_the_place_of_the_common_one():
    policy, _, _ = chain("sd1", negative_prompt="fog")
    other, _, _ = chain("sd1", negative_prompt="rain")
    x, t = torch.randn(3, *policy.shape), torch.tensor([2, 1, 2])
    own = policy(x, t, {**COND, "negative_prompt": ["fog", "rain", "rain"]}).mean
    torch.testing.assert_close(own[:1], policy(x, t, COND).mean[:1])
    torch.testing.assert_close(own[1:], other(x, t, COND).mean[1:])
    assert not torch.allclose(policy(x, t, COND).mean, other(x, t, COND).mean)


def test_rows_go_through_the_network_by_their_times():
    policy, _, _ = chain("sd1", micro_batch=8)
    calls = []
    policy.network.network.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    t = torch.randint(1, policy.steps + 1, (16,), generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, *policy.shape).expand(16, -1, -1, -1)
    with torch.no_grad():
        mean = policy(x, t, {"prompt": ["a cat"] * 16}).mean
        assert len(calls) == len(t.unique()) == 3 and sum(calls) == 16
        for row in (0, 7, 15):
            alone = policy(x[:1], t[row : row + 1], {"prompt": ["a cat"]}).mean
            torch.testing.assert_close(mean[row : row + 1], alone)


def test_what_does_not_work_here_is_refused_in_a_sentence():
    pipe, call = tiny.build("sd1")
    library = tiny.library()
    dit = library.DiTPipeline(torch.nn.Linear(1, 1), pipe.vae, pipe.scheduler)
    with pytest.raises(ValueError, match="a DiTPipeline is none of those that work here"):
        pipeline_policy(dit, 3)
    with pytest.raises(ValueError, match=r"takes height, width, .* but got size"):
        pipeline_policy(pipe, 3, size=512)
    with pytest.raises(ValueError, match="but got output_type"):
        pipeline_policy(pipe, 3, output_type="pil")
    with pytest.raises(ValueError, match="steps must be >= 1, but got 0"):
        pipeline_policy(pipe, 0)
    with pytest.raises(ValueError, match=r"cannot be run one step at a time with .* \(TypeError"):
        pipeline_policy(pipe, 3, guidance_scale="much")
    pipe._all_hooks = [object()]
    with pytest.raises(ValueError, match="load it without CPU offload"):
        pipeline_policy(pipe, 3, **call)
    pipe._all_hooks = []
    with pytest.raises(ValueError, match=r"pass the reference that lora\(policy\) returns"):
        copy.deepcopy(pipeline_policy(pipe, 3, **call))


def test_a_pipeline_that_remembers_the_step_before_is_refused():
    pipe, call = tiny.build("sd1")
    calls = []

    def drifts(module, args, output):
        calls.append(0)
        return (output[0] + 0.1 * len(calls),)

    pipe.unet.register_forward_hook(drifts)
    with pytest.raises(ValueError, match=r"the output of step 1 of 3 .* differs .* by 0\.\d+ of the largest"):
        pipeline_policy(pipe, 3, **call)
