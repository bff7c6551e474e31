"""LoRA (Hu et al., 2021) on any network. The reference is the same network with its adapters switched off.

reference = lora(policy)  # freezes the network, adds adapters, and returns the chain without them
save_lora(policy, folder)  # the adapters alone, as peft reads them
load_lora(policy, folder)  # into a fresh policy; `lora(policy)` then goes on with them
"""

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors.torch import save_file

from difftilt.data.atomic import atomic_file
from difftilt.data.read import read_tensors
from difftilt.networks.adapter_layers import (
    adapter_layers,
    adapter_name,
    add_adapters,
    carrier_of,
    check_apart,
    check_bare,
    fill_adapters,
    fitting,
    load_peft,
    target_layers,
    train_adapters,
)
from difftilt.networks.guidance import ClassifierFreeGuidance
from difftilt.networks.micro_batch import MicroBatch
from difftilt.policy import Policy

RANK = 4
WEIGHTS, CONFIG, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."  # peft's


def lora(
    policy: Policy,
    rank: int | None = None,
    targets: Sequence[str] | None = None,
    network: nn.Module | None = None,
) -> Policy:
    """Freezes a network, adds LoRA to it and returns the chain without, which is the reference.

    Both share all weights. The adapters are in float32 or better, whatever the network is in, and the only
    part of it that trains.
    A network that carries one already, by `load_lora` or by a pipeline's own loading, goes on with that one.

    Args:
        policy: The chain to tune.
        rank: Of the update of each layer, at least 1; by default 4, or that of the adapter already there.
        targets: Names of the layers that get one, or ends of their names after a dot. By default these are
            the attention projections, linear layers called as in `adapter_layers.ATTENTION`, such as to_q,
            q_proj, query or qkv; in a network without any of them, all linear layers. Those within
            `nn.MultiheadAttention` cannot be adapted.
        network: The part of `policy.network` to adapt; by default all that stands within classifier-free
            guidance and micro-batches.

    Raises:
        ValueError: If no layer is to be adapted, or if the adapters already there are several, are merged
            into the weights, or are others than `rank` and `targets` ask for.
    """
    network = denoiser_of(policy) if network is None else network
    _check_part(policy, network)
    adapt(network, rank, targets)
    return without_adapters(policy, network)


def adapt(network: nn.Module, rank: int | None = None, targets: Sequence[str] | None = None) -> None:
    """Freezes a network and adds LoRA to it, or goes on with what it carries; see `lora`."""
    if adapter_layers(network):
        _check_same(network, rank, targets)
    else:
        add_adapters(network, RANK if rank is None else rank, target_layers(network, targets))
    train_adapters(network)


def save_lora(owner: nn.Module, folder: Path | str) -> None:
    """Writes a network's adapters: adapter_model.safetensors and adapter_config.json, as peft reads them.

    `peft.PeftModel.from_pretrained(network, folder)` and `load_lora` load them into a network without any.

    Args:
        owner: A policy or a network that carries adapters.
        folder: Made if it is missing; other files in it stay.
    """
    network = carrier_of(owner)
    name = adapter_name(network)
    weights = load_peft().get_peft_model_state_dict(network, adapter_name=name)
    with atomic_file(Path(folder) / WEIGHTS) as file:
        save_file({PREFIX + key: w.detach().cpu().contiguous() for key, w in weights.items()}, file)
    with atomic_file(Path(folder) / CONFIG) as file:
        config = network.peft_config[name].to_dict()
        file.write_text(json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n")


def load_lora(owner: nn.Module, folder: Path | str) -> None:
    """Adds saved adapters to a network that has none. `lora` makes them trainable and goes on with them.

    Args:
        owner: A policy, or the network that was adapted.
        folder: What `save_lora` or peft's `save_pretrained` wrote.

    Raises:
        ValueError: If a file is missing, if the network carries adapters already, or if a weight belongs to
            no layer or has another shape. Nothing is changed then.
    """
    network = denoiser_of(owner) if isinstance(owner, Policy) else owner
    folder = Path(folder)
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no adapters: got no {name}; write them with save_lora")
    check_bare(network)
    weights = fitting(read_tensors(folder / WEIGHTS), network, PREFIX, folder / WEIGHTS)
    config = load_peft().LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False  # as peft writes it, which would freeze them
    fill_adapters(network, config, weights, folder / WEIGHTS)


class AdaptersOff(nn.Module):
    """Runs a network with its peft adapters switched off.

    The switch lies inside `forward`, so that a recomputation in the backward pass (`MicroBatch`) finds it
    off as well. Gradient checkpointing within the network would recompute after the switch is back on:
    it rests meanwhile.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self._shared = (network,)  # in a tuple: its weights are not this module's to count, freeze or save

    @property
    def shared(self) -> nn.Module:
        """The network, adapters and all."""
        return self._shared[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with adapters_off(self.shared):
            return self.shared(*args, **kwargs)


def without_adapters(policy: Policy, network: nn.Module) -> Policy:
    """The chain as it was before adapters were added: it shares all weights of `network`.

    Args:
        policy: The chain to tune.
        network: The part of `policy.network` that carries the adapters.
    """
    _check_part(policy, network)
    if not adapter_layers(network):
        raise ValueError(f"the {type(network).__name__} carries no adapters; add them with peft first")
    reference = copy.deepcopy(policy, {id(network): AdaptersOff(network)})
    return reference.requires_grad_(False)


def denoiser_of(policy: Policy) -> nn.Module:
    """The network within classifier-free guidance and micro-batches."""
    network = policy.network
    while isinstance(network, ClassifierFreeGuidance | MicroBatch):
        network = network.network
    return network


def _check_part(policy: Policy, network: nn.Module) -> None:
    if all(part is not network for part in policy.modules()):
        raise ValueError(f"the network with adapters, a {type(network).__name__}, is not part of the policy")


def _check_same(network: nn.Module, rank: int | None, targets: Sequence[str] | None) -> None:
    """Makes sure that the adapters already there are those asked for, and can be switched off."""
    layers = adapter_layers(network)
    if any(layer.merged for layer in layers):
        raise ValueError(
            "adapters to tune must stand beside the weights, but got merged ones; unmerge them first"
        )
    config = carrier_of(network).peft_config[adapter_name(network)]
    if rank is not None and rank != config.r:
        raise ValueError(
            f"the network carries adapters of rank {config.r} already, but got rank {rank}; leave rank out to"
            " go on with them"
        )
    carrying = {name for name, m in network.named_modules() if m in layers}
    check_apart(network, carrying)
    if targets is not None and set(target_layers(network, targets)) != carrying:
        raise ValueError(
            f"the network carries adapters on {len(carrying)} layers already, but got targets that name"
            f" others, {list(targets)}; leave targets out to go on with them"
        )


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Switches the adapters of a network off while the block runs; see `AdaptersOff`."""
    layers = adapter_layers(network)
    trainable = [(p, p.requires_grad) for layer in layers for p in layer.parameters()]
    modules: list[Any] = list(network.modules())
    checkpointed = [m for m in modules if getattr(m, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True
        for layer in layers:
            layer.enable_adapters(True)
        for p, needed in trainable:  # peft's switch also decides what trains
            p.requires_grad_(needed)
