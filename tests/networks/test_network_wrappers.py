"""Guidance, micro-batches and adapters wrap a network without changing what it says."""

import copy
from typing import Any

import pytest
import torch
import torch.nn as nn
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import path_kl
from torch import Tensor

from difftilt.algorithms.ppo import PPO
from difftilt.networks.adapters import AdaptersOff, without_adapters
from difftilt.networks.guidance import ClassifierFreeGuidance
from difftilt.networks.micro_batch import MicroBatch
from difftilt.objective import Objective
from difftilt.policy import Trajectory, path_log_prob, rollout
from difftilt.processes.gaussian import GaussianPolicy
from difftilt.processes.schedule import linear
from difftilt.shapes import Cond
from difftilt.training.fit import fit

ROWS, SIZE = 11, 3
COND: Cond = {"label": torch.randn(ROWS, 2), "prompt": [f"number {i}" for i in range(ROWS)]}


class Network(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.first, self.last = nn.Linear(6, width), nn.Linear(width, SIZE)

    def forward(self, x: Tensor, time: Tensor, cond: Cond) -> Tensor:
        inputs = [x, time[:, None].float() / 1000, torch.as_tensor(cond["label"])]
        return self.last(self.first(torch.cat(inputs, 1)).tanh())


def policy_of(network: nn.Module) -> GaussianPolicy:
    return GaussianPolicy(network, linear(4), (SIZE,), prediction_type="sample")


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network()


@pytest.fixture(scope="module")
def path(network) -> Trajectory:
    return rollout(policy_of(network), COND)


def gradients(policy: GaussianPolicy, path: Trajectory) -> list[Tensor]:
    policy.zero_grad()
    path_log_prob(policy, path).sum().backward()
    return [torch.as_tensor(p.grad).clone() for p in policy.parameters()]


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 60))
def test_any_micro_batch_gives_the_same_values_gradients_and_samples(network, path, size):
    whole, parts = policy_of(network), policy_of(MicroBatch(network, size))
    torch.testing.assert_close(path_log_prob(parts, path), path_log_prob(whole, path), rtol=0, atol=1e-4)
    for a, b in zip(gradients(parts, path), gradients(whole, path), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())
    states = []
    for policy in (whole, parts):
        torch.manual_seed(1)
        states.append(rollout(policy, COND).states)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-5)


def kept_bytes(network: nn.Module, rows: int) -> int:
    """What the backward pass keeps of the activations, the wrapper's own inputs and outputs included."""
    parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    x, time = torch.randn(rows, SIZE), torch.zeros(rows, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        output = network(x, time, {"label": torch.randn(rows, 2)})
    assert output.requires_grad
    return sum(kept.values())


def test_micro_batches_keep_no_activations():
    """Of a network 64 times as wide as its input: without micro-batches, memory grows by rows * width."""
    network = Network(width=6 * 64)
    whole = kept_bytes(network, 1024)
    assert whole > 1024 * 6 * 64 * 4
    parts = kept_bytes(MicroBatch(network, 64), 1024)
    assert parts < whole / 10


def test_a_micro_batch_needs_a_row():
    with pytest.raises(ValueError, match="at least 1 row, but got 0"):
        MicroBatch(Network(), 0)


NULL = {"label": torch.tensor([5.0, -5.0])}


@pytest.mark.parametrize(("scale", "label"), [(1.0, COND["label"]), (0.0, NULL["label"].expand(ROWS, 2))])
def test_guidance_ends_at_the_conditional_and_the_unconditional_network(network, scale, label):
    x, time = torch.randn(ROWS, SIZE), torch.randint(0, 999, (ROWS,))
    guided = ClassifierFreeGuidance(network, scale, NULL)(x, time, COND)
    torch.testing.assert_close(guided, network(x, time, {"label": label}), rtol=0, atol=1e-6)


def test_guidance_is_linear_in_its_scale(network):
    x, time = torch.randn(ROWS, SIZE), torch.randint(0, 999, (ROWS,))
    at: Any = {
        scale: ClassifierFreeGuidance(network, scale, NULL)(x, time, COND) for scale in (0.0, 1.0, 7.5)
    }
    torch.testing.assert_close(at[7.5] - at[0.0], 7.5 * (at[1.0] - at[0.0]), rtol=0, atol=1e-5)
    assert not torch.allclose(at[7.5], at[1.0], atol=0.1)


def test_guidance_without_its_condition_is_refused(network):
    with pytest.raises(ValueError, match=r"guidance away from \['label'\] needs .*, but got \['prompt'\]"):
        ClassifierFreeGuidance(network, 2.0, NULL)(torch.zeros(1, SIZE), torch.zeros(1), {"prompt": ["a"]})


@pytest.mark.parametrize("size", [4, 100])
def test_ratios_start_at_one_under_guidance_and_micro_batches(size):
    """PPO refuses a first ratio that is not 1: the policy trained is the one sampled, guidance included."""
    torch.manual_seed(0)
    policy = policy_of(MicroBatch(ClassifierFreeGuidance(Network(), 7.5, NULL), size))
    reference = copy.deepcopy(policy).requires_grad_(False)
    path = rollout(policy, COND)
    assert (path_log_prob(policy, path) - path.log_prob).abs().max() < 1e-5
    unguided = policy_of(policy.network.network.network)  # pyright: ignore
    assert (path_log_prob(unguided, path) - path.log_prob).abs().max() > 0.1
    objective = Objective(lambda x, c: x.sum(1), reference, 0.1)
    optimizer = torch.optim.Adam(policy.parameters(), 1e-3)
    rows = list(fit(policy, objective, PPO(), [COND], optimizer, accelerator=Accelerator(cpu=True)))
    assert rows[0]["kl_nats"] == 0


def with_lora() -> tuple[GaussianPolicy, Network]:
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    network = Network()
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["first"]), network)
    nn.init.normal_(network.first.lora_B["default"].weight)  # pyright: ignore
    return policy_of(MicroBatch(ClassifierFreeGuidance(network, 2.0, NULL), 4)), network


def test_the_reference_is_the_network_without_its_adapters():
    policy, network = with_lora()
    torch.manual_seed(0)
    plain = policy_of(ClassifierFreeGuidance(Network(), 2.0, NULL))
    reference = without_adapters(policy, network)
    path = rollout(policy, COND)
    expected = path_log_prob(plain, path)
    torch.testing.assert_close(path_log_prob(reference, path), expected, rtol=0, atol=1e-4)
    assert path_kl(policy, reference, path)[1:].min() > 0
    assert list(reference.parameters()) == []
    assert not isinstance(policy.network.network.network, AdaptersOff)  # pyright: ignore
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == {"first.lora_A.default.weight", "first.lora_B.default.weight"}


def test_frozen_adapters_stay_frozen():
    policy, network = with_lora()
    reference = without_adapters(policy, network)
    policy.requires_grad_(False)
    reference(torch.randn(ROWS, SIZE), torch.full((ROWS,), 2), COND)
    assert not any(p.requires_grad for p in network.parameters())


def test_an_exception_leaves_the_adapters_on():
    policy, network = with_lora()
    reference = without_adapters(policy, network)
    x, t = torch.randn(ROWS, SIZE), torch.full((ROWS,), 2)
    before = policy(x, t, COND).mean
    with pytest.raises(KeyError):
        AdaptersOff(network)(x, t, {"prompt": ["a"] * ROWS})
    assert policy(x, t, COND).mean.equal(before)
    assert not reference(x, t, COND).mean.equal(before)


def test_a_network_without_adapters_has_no_reference_in_itself():
    network = Network()
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="the Network carries no adapters; add them"):
        without_adapters(policy_of(network), network)
    with pytest.raises(ValueError, match="a Network, is not part of the policy"):
        without_adapters(policy_of(network), Network())
