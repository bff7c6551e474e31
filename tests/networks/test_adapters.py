"""LoRA on any module: it starts as the reference, it alone learns, and a saved one is gone on with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
from accelerate import Accelerator
from paths import path_kl
from safetensors.torch import load_file, save_file
from torch import Tensor

from difftilt import load_lora, lora, save_lora
from difftilt.algorithms.ppo import PPO
from difftilt.conditions import unconditional
from difftilt.networks.adapter_layers import adapter_layers
from difftilt.networks.guidance import ClassifierFreeGuidance
from difftilt.networks.micro_batch import MicroBatch
from difftilt.objective import Objective
from difftilt.policy import Policy, path_log_prob, rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import linear
from difftilt.shapes import Cond
from difftilt.training.fit import fit

peft: Any = pytest.importorskip("peft")
ROWS, FILE = 6, "adapter_model.safetensors"


class Mlp(nn.Module):
    """Its layers are called 0 and 2, as those of others are: whole names count."""

    shape, linear = (3,), {"layers.0", "layers.2", "after.layers.0"}

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        self.after = nn.ModuleDict({"layers": nn.Sequential(nn.Linear(3, 3), nn.Tanh())})

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        own = next(self.parameters()).dtype
        out = self.layers(torch.cat([x, time[:, None] / 1000], 1).to(own))
        return out + self.after["layers"](out)


class Encoder(nn.Module):
    """PyTorch's own transformer, whose fast path reads weights past their layers."""

    shape, linear = (4, 8), {f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)}

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.encoder(x + time[:, None, None] / 1000)


class Attention(nn.Module):
    """Projections under the names of diffusers, beside other linear layers."""

    shape, linear = (4, 8), {"to_q", "to_k", "to_v", "to_out.0"}

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.last = (nn.Linear(8, 8) for _ in range(4))
        self.to_out = nn.Sequential(nn.Linear(8, 8))

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        x = x + time[:, None, None] / 1000
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        return self.last(self.to_out(nn.functional.scaled_dot_product_attention(q, k, v)))


class Unet2d(nn.Module):
    """diffusers' unconditional UNet, which has no `add_adapter`."""

    shape = (1, 8, 8)
    linear = frozenset(f"unet.mid_block.attentions.0.{end}" for end in ("to_q", "to_k", "to_v", "to_out.0"))

    def __init__(self):
        super().__init__()
        diffusers: Any = pytest.importorskip("diffusers")
        self.unet = diffusers.UNet2DModel(
            sample_size=8,
            in_channels=1,
            out_channels=1,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attention_head_dim=4,
        )

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        return self.unet(x, time).sample


NETWORKS: list[Any] = [Mlp, Encoder, Attention, Unet2d]
every_network = pytest.mark.parametrize("kind", NETWORKS)


def policy_of(kind: Any, around: Callable[[Any], nn.Module] = lambda network: network) -> GaussianPolicy:
    torch.manual_seed(0)
    return GaussianPolicy(around(kind()), linear(3), kind.shape, prediction_type="sample")


def stir(policy: Policy) -> None:
    """Makes fresh adapters change something."""
    torch.manual_seed(1)
    for name, p in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p, std=0.3)


def mean(policy: Policy) -> Tensor:
    torch.manual_seed(2)
    x = torch.randn(ROWS, *policy.initial(unconditional(1)).sample().shape[1:])
    return policy(x, torch.tensor([3, 2, 1] * 2), unconditional(ROWS)).mean.detach()  # pyright: ignore


def tune(policy: Policy, reference: Policy, rounds: int = 2) -> list[dict[str, float]]:
    objective = Objective(lambda x, cond: x.flatten(1).mean(1), reference, 0.01)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 1e-2)
    algorithm, conds = PPO(epochs=1, minibatches=2), [unconditional(32)] * rounds
    return list(fit(policy, objective, algorithm, conds, optimizer, accelerator=Accelerator(cpu=True)))


@every_network
def test_training_starts_at_the_reference_and_moves_the_adapters_alone(kind):
    policy = policy_of(kind)
    base = {name: p.detach().clone() for name, p in policy.named_parameters()}
    pretrained = mean(policy)
    reference = lora(policy, rank=2)
    assert list(reference.parameters()) == []
    path = rollout(policy, unconditional(ROWS))
    assert path_kl(policy, reference, path).abs().max() == 0
    frozen = path_log_prob(reference, path)
    rows = tune(policy, reference)
    assert rows[0]["kl_nats"] == 0
    assert path_kl(policy, reference, path).sum() > 0
    assert path_log_prob(reference, path).equal(frozen)
    torch.testing.assert_close(mean(reference), pretrained, rtol=0, atol=1e-6)
    for name, p in policy.named_parameters():
        assert p.requires_grad == ("lora_" in name), name
        if "lora_" not in name:
            assert p.equal(base[name.replace(".base_layer", "")]), name


@every_network
def test_attention_is_adapted_by_default_and_otherwise_every_linear_layer(kind):
    policy = policy_of(kind)
    lora(policy)
    layers = adapter_layers(policy)
    found = {name for name, m in policy.network.named_modules() if m in layers}
    assert found == kind.linear
    assert {layer.r["default"] for layer in layers} == {4}


@every_network
def test_sampling_in_evaluation_mode_draws_from_what_is_trained(kind):
    policy = policy_of(kind)
    reference = lora(policy)
    stir(policy)
    expected = mean(policy.train())
    with torch.no_grad():
        torch.testing.assert_close(mean(policy.eval()), expected, rtol=0, atol=1e-5)
        assert (mean(reference.eval()) - expected).abs().max() > 1e-3


@every_network
def test_a_saved_adapter_is_loaded_gone_on_with_and_saved_again(kind, tmp_path):
    policy = policy_of(kind)
    base = mean(policy)
    lora(policy, rank=2)
    stir(policy)
    save_lora(policy, tmp_path / "one")
    later = policy_of(kind)
    load_lora(later, tmp_path / "one")
    assert mean(later).equal(mean(policy))
    reference = lora(later)
    assert len(adapter_layers(later)) == len(adapter_layers(policy))
    assert mean(later).equal(mean(policy))
    torch.testing.assert_close(mean(reference), base, rtol=0, atol=1e-6)
    assert all(p.requires_grad == ("lora_" in name) for name, p in later.named_parameters())
    first = path_kl(later, reference, rollout(later, unconditional(ROWS))).sum()
    assert first > 0
    tune(later, reference, rounds=1)
    assert (mean(later) - mean(policy)).abs().max() > 1e-4
    save_lora(later.network, tmp_path / "two")
    last = policy_of(kind)
    load_lora(last.network, tmp_path / "two")
    assert mean(last).equal(mean(later))


@every_network
def test_peft_reads_what_is_saved(kind, tmp_path):
    policy = policy_of(kind)
    lora(policy, rank=2)
    stir(policy)
    save_lora(policy, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {FILE, "adapter_config.json"}
    assert json.loads((tmp_path / "adapter_config.json").read_text())["r"] == 2
    other = policy_of(kind)
    other.network = peft.PeftModel.from_pretrained(other.network, tmp_path)
    torch.testing.assert_close(mean(other.train()), mean(policy), rtol=0, atol=1e-6)


def test_what_peft_saves_is_read_and_gone_on_with(tmp_path):
    policy = policy_of(Mlp)
    policy.network = peft.get_peft_model(policy.network, peft.LoraConfig(target_modules=["layers.0"], r=3))
    stir(policy)
    policy.network.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    later = policy_of(Mlp)
    load_lora(later, tmp_path)
    assert mean(later).equal(mean(policy))
    tune(later, lora(later), rounds=1)
    assert not mean(later).equal(mean(policy))


def test_guidance_and_micro_batches_are_seen_through():
    null = {"index": torch.zeros(())}
    plain = policy_of(Mlp)
    lora(plain)
    policy = policy_of(Mlp, lambda network: MicroBatch(ClassifierFreeGuidance(network, 2.0, null), 4))
    lora(policy)
    inner: Any = policy.network.network.network  # pyright: ignore[reportAttributeAccessIssue]
    assert inner.state_dict().keys() == plain.network.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_adapters_of_half_precision_networks_are_in_full_precision(dtype, tmp_path):
    policy = policy_of(Mlp)
    policy.network.to(dtype)
    reference = lora(policy)
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert path_kl(policy, reference, rollout(policy, unconditional(ROWS))).abs().max() == 0
    stir(policy)
    save_lora(policy, tmp_path)
    later = policy_of(Mlp)
    later.network.to(dtype)
    load_lora(later, tmp_path)
    lora(later)
    assert {p.dtype for p in later.parameters() if p.requires_grad} == {torch.float32}
    assert mean(later).equal(mean(policy))
    assert {p.dtype for name, p in later.named_parameters() if "lora" not in name} == {dtype}


@pytest.mark.parametrize("fault", ["prefix", "missing", "shape", "empty", "no file"])
def test_damaged_adapters_are_refused_and_leave_the_network_as_it_was(fault, tmp_path: Path):
    policy = policy_of(Mlp)
    lora(policy)
    save_lora(policy, tmp_path)
    weights = load_file(tmp_path / FILE)
    name = "base_model.model.layers.0.lora_A.weight"
    if fault == "prefix":
        weights = {f"unet.{key}": w for key, w in weights.items()}
    elif fault == "missing":
        del weights[name]
    elif fault == "shape":
        weights[name] = torch.zeros(4, 5)
    save_file({} if fault == "empty" else weights, tmp_path / FILE)
    if fault == "no file":
        (tmp_path / FILE).unlink()
    fresh = policy_of(Mlp)
    before, keys = mean(fresh), fresh.state_dict().keys()
    words = dict.fromkeys(["missing", "shape"], "must hold a weight") | {"no file": "got no adapter_model"}
    with pytest.raises(ValueError, match=words.get(fault, "belong to no layer of the Mlp")):
        load_lora(fresh, tmp_path)
    assert fresh.state_dict().keys() == keys and mean(fresh).equal(before)
    lora(fresh)


def test_a_second_adapter_is_refused(tmp_path):
    policy = policy_of(Mlp)
    lora(policy, rank=2)
    save_lora(policy, tmp_path)
    with pytest.raises(ValueError, match="must carry no adapters yet"):
        load_lora(policy, tmp_path)
    with pytest.raises(ValueError, match="of rank 2 already, but got rank 8; leave rank out"):
        lora(policy, rank=8)
    with pytest.raises(ValueError, match="on 3 layers already, but got targets that name others"):
        lora(policy, targets=["after.layers.0"])
    lora(policy, rank=2, targets=[*Mlp.linear])
    peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["layers.0"]), policy.network, "style")
    with pytest.raises(ValueError, match="must carry one adapter, but got default, style; delete or fuse"):
        lora(policy)


def test_merged_adapters_are_refused():
    policy = policy_of(Mlp)
    lora(policy)
    adapter_layers(policy)[0].merge()
    with pytest.raises(ValueError, match="got merged ones; unmerge"):
        lora(policy)


def test_what_cannot_be_adapted_is_refused(tmp_path):
    policy = policy_of(Mlp)
    with pytest.raises(ValueError, match=r"got \['nowhere'\] of which the Mlp has none"):
        lora(policy, targets=["layers.0", "nowhere"])
    with pytest.raises(ValueError, match="rank must be >= 1"):
        lora(policy, rank=0)
    with pytest.raises(ValueError, match="is not part of the policy"):
        lora(policy, network=Mlp())
    with pytest.raises(ValueError, match="must carry all its adapters, but got 0"):
        save_lora(policy, tmp_path)

    class Whole(nn.Linear):
        shape = (3,)

        def __init__(self):
            super().__init__(3, 3)

    with pytest.raises(ValueError, match="got a Whole without any; name other layers"):
        lora(policy_of(Whole))


@pytest.mark.parametrize("end", ["self_attn", "out_proj"])
def test_attention_whose_weights_peft_would_rewrite_is_refused(end, tmp_path):
    """Adding the update to the weights and subtracting it again lets the reference drift by rounding."""
    policy = policy_of(Encoder)
    with pytest.raises(ValueError, match=r"got encoder\.layers\.0\.self_attn.*rewrites at each pass"):
        lora(policy, targets=[end])
    config = peft.LoraConfig(target_modules=["self_attn"])
    policy.network = peft.get_peft_model(policy.network, config)
    policy.network.save_pretrained(tmp_path)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ValueError, match="rewrites at each pass"):
        lora(policy)
    with pytest.raises(ValueError, match="rewrites at each pass"):
        load_lora(policy_of(Encoder), tmp_path)
