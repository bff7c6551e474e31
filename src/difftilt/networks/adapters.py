"""A reference without a second copy: the same network with its adapters (LoRA) switched off."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn as nn

from difftilt.policy import Policy


class AdaptersOff(nn.Module):
    """Runs a network with its peft adapters switched off.

    The switch lies inside `forward`, so that a recomputation in the backward pass (`MicroBatch`) finds it
    off as well. Gradient checkpointing within the network would recompute after the switch is back on:
    it rests meanwhile.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self._shared = (network,)  # in a tuple: its weights are not this module's to count, freeze or save

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _adapters_off(self._shared[0]):
            return self._shared[0](*args, **kwargs)


def without_adapters(policy: Policy, network: nn.Module) -> Policy:
    """The chain as it was before adapters were added: it shares all weights of `network`.

    Args:
        policy: The chain to tune.
        network: The part of `policy.network` that carries the adapters.
    """
    if all(part is not network for part in policy.modules()):
        raise ValueError(f"the network with adapters, a {type(network).__name__}, is not part of the policy")
    if not _adapter_layers(network):
        raise ValueError(f"the {type(network).__name__} carries no adapters; add them with peft first")
    reference = copy.deepcopy(policy, {id(network): AdaptersOff(network)})
    return reference.requires_grad_(False)


@contextmanager
def _adapters_off(network: nn.Module) -> Iterator[None]:
    layers = _adapter_layers(network)
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


def _adapter_layers(network: nn.Module) -> list[Any]:
    tuner = load_peft().tuners.tuners_utils.BaseTunerLayer
    return [module for module in network.modules() if isinstance(module, tuner)]


def load_peft() -> Any:
    """The library of adapters, which is loaded only when it is used."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft; install it with pip install 'difftilt[diffusers]'") from error
    return peft
