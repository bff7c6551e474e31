"""The layers of a network that carry adapters: which they are, what trains, and how they are filled."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.settings import Count, check_value

ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0", "to_out", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    *("to_qkv", "to_qkv_mlp_proj"),  # diffusers, as the line above
    *("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "query", "key", "value", "qkv"),
)


def load_peft() -> Any:
    """The library of adapters, which is loaded only when it is used."""
    try:
        import peft
    except ImportError as error:
        raise ImportError("adapters need peft; install it with pip install 'difftilt[diffusers]'") from error
    return peft


def adapter_layers(network: nn.Module) -> list[Any]:
    """The layers that carry adapters."""
    tuner = load_peft().tuners.tuners_utils.BaseTunerLayer
    return [module for module in network.modules() if isinstance(module, tuner)]


def carrier_of(owner: nn.Module) -> Any:
    """The part to which peft added adapters, by whose name for its layers they are saved."""
    carriers = [module for module in owner.modules() if "peft_config" in vars(module)]
    if not carriers or len(adapter_layers(carriers[-1])) != len(adapter_layers(owner)):
        raise ValueError(
            f"one part of the {type(owner).__name__} must carry all its adapters, but got {len(carriers)}"
            " such parts; pass the network that they were added to"
        )
    return carriers[-1]


def adapter_name(network: nn.Module) -> str:
    """What peft calls the one adapter that a network carries."""
    names = list(carrier_of(network).peft_config)
    if len(names) != 1:
        raise ValueError(
            f"the {type(network).__name__} must carry one adapter, but got {', '.join(names)}; delete or fuse"
            " the others"
        )
    return names[0]


def train_adapters(network: Any) -> None:
    """Freezes all of a network but its one adapter, which is switched on and brought to float32 or better."""
    name = adapter_name(network)
    network.requires_grad_(False)
    for layer in adapter_layers(network):
        layer.enable_adapters(True)
        layer.set_adapter(name)
    for p in network.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))  # half steps would round away
    if getattr(network, "_hf_peft_config_loaded", None) is False:
        network._hf_peft_config_loaded = True  # without it diffusers and transformers deny the adapters
    for module in network.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # its fast path, taken without gradients in evaluation mode, reads weights past the adapters
            module.activation_relu_or_gelu = 0


def check_bare(network: nn.Module) -> None:
    """Refuses a network that carries adapters, to which loading would add a second one."""
    if adapter_layers(network):
        raise ValueError(
            f"the {type(network).__name__} must carry no adapters yet, but got one that does; load first, and"
            " then go on with lora(...)"
        )


def check_apart(network: nn.Module, names: Iterable[str]) -> None:
    """Refuses layers of these names that peft adapts by rewriting their weights, or not at all.

    For `nn.MultiheadAttention` it adds the update to the weights at each pass and subtracts it afterwards:
    their rounding errors add up, and the reference would drift. What lies within is read past its adapter.
    """
    modules = dict(network.named_modules())
    for name in names:
        around = [modules.get(part) for part in (name, name.rpartition(".")[0])]
        if any(isinstance(getattr(m, "base_layer", m), nn.MultiheadAttention) for m in around):
            raise ValueError(
                f"adapters must leave the weights as they are, but got {name}, an nn.MultiheadAttention or a"
                " part of one, which peft rewrites at each pass; adapt other layers, or make it linear ones"
            )


def fitting(weights: Mapping[str, Tensor], network: nn.Module, prefix: str, place: Path) -> dict[str, Tensor]:
    """Saved weights of adapters without their prefix, once it is clear that each belongs to a layer."""
    check_apart(network, [_layer_of(name).removeprefix(prefix) for name in weights])
    layers = {prefix + name for name, _ in network.named_modules()}
    stray = [name for name in weights if _layer_of(name) not in layers]
    if stray or not weights:
        raise ValueError(
            f"{place} holds {len(stray)} of {len(weights)} weights that belong to no layer of the"
            f" {type(network).__name__}, such as {stray[:1]}; names must read {prefix}LAYER.lora_A.weight"
        )
    return {name.removeprefix(prefix): weight for name, weight in weights.items()}


def add_adapters(network: nn.Module, rank: int, names: Sequence[str]) -> None:
    """Adds fresh adapters, which change nothing yet, to the layers of these names."""
    load_peft().inject_adapter_in_model(config_for(network, rank, names, rank), network)


def config_for(network: nn.Module, rank: int, names: Sequence[str], scale: float) -> Any:
    """Settings of adapters on the layers of these names.

    Args:
        scale: The update counts scale / rank times; what peft calls lora_alpha.
    """
    check_value("rank", rank, Count)
    every = [name for name, _ in network.named_modules()]
    clear = not any(other.endswith(f".{name}") for name in names for other in every)
    exact = "|".join(map(re.escape, names))  # peft reads a list as ends of names, and text as an expression
    return load_peft().LoraConfig(r=rank, lora_alpha=scale, target_modules=list(names) if clear else exact)


def fill_adapters(network: nn.Module, config: Any, weights: Mapping[str, Tensor], place: Path) -> None:
    """Adds saved adapters, or leaves the network as it was."""
    peft = load_peft()
    peft.inject_adapter_in_model(config, network)
    made = peft.get_peft_model_state_dict(network)
    wrong = [k for k in {**made, **weights} if k not in made or k not in weights]
    wrong += [k for k in weights if k in made and weights[k].shape != made[k].shape]
    if wrong:
        _remove(network)
        raise ValueError(
            f"{place} must hold a weight of each adapted layer in the network's shape, but got another"
            f" {wrong[0]}; load it into the network that it was made for"
        )
    train_adapters(network)  # first, so that weights in float32 meet such in float32
    peft.set_peft_model_state_dict(network, dict(weights))


def target_layers(network: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """The names of the layers that are to be adapted."""
    if targets is None:
        return _default_targets(network)
    names = [name for name, _ in network.named_modules() if ".base_layer" not in name]
    missing = [end for end in targets if not any(_ends(name, [end]) for name in names)]
    if missing or not targets:
        raise ValueError(
            f"targets must be names of layers, or ends of such, but got {[*missing]} of which the"
            f" {type(network).__name__} has none; see network.named_modules()"
        )
    found = [name for name in names if _ends(name, targets)]
    check_apart(network, found)
    return found


def _remove(network: Any) -> None:
    tuner = load_peft().tuners.tuners_utils.BaseTunerLayer
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, tuner)]
    for name, layer in layers:
        network.set_submodule(name, layer.base_layer)
    del network.peft_config


def _default_targets(network: nn.Module) -> list[str]:
    """Attention projections if there are any, and all linear layers otherwise."""
    modules = dict(network.named_modules())
    linear = [
        name
        for name, m in modules.items()
        # a layer with a forward of its own is more than linear
        if name and isinstance(m, nn.Linear) and type(m).forward is nn.Linear.forward
        if not isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention)
    ]
    found = [name for name in linear if _ends(name, ATTENTION)] or linear
    if not found:
        raise ValueError(
            f"adapters need linear layers within the network, but got a {type(network).__name__} without any;"
            " name other layers in targets, such as convolutions"
        )
    return found


def _ends(name: str, ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for end in ends)


def _layer_of(weight: str) -> str:
    """The layer that a saved weight belongs to."""
    return weight.rpartition(".lora")[0]
