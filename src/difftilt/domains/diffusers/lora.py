"""LoRA on any pipeline: the adapters that tune its denoisers, and files that plain diffusers reads.

reference = lora(policy, rank=16)
print(coverage(policy))
save_lora(policy, folder)  # pytorch_lora_weights.safetensors
for line in how_to_load(policy, folder): ...  # what plain diffusers is told
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.nn as nn
from safetensors import safe_open
from safetensors.torch import save_file

from difftilt.data.atomic import atomic_file
from difftilt.data.read import parse_json, read_tensors
from difftilt.domains.diffusers.pipeline import step_of
from difftilt.networks import adapter_layers, adapters
from difftilt.policy import Policy

LORA_FILE = "pytorch_lora_weights.safetensors"  # what diffusers looks for
METADATA = "lora_adapter_metadata"  # where it looks for their settings
SHOWN = 6  # kinds of layers without an adapter that are named


def lora(policy: Policy, rank: int | None = None, targets: Sequence[str] | None = None) -> Policy:
    """Freezes a pipeline, adds LoRA to its denoisers and returns the chain without, which is the reference.

    A pipeline with a loaded LoRA goes on with that one.

    Args:
        policy: Made by `pipeline_policy`.
        rank: Of the update of each layer, at least 1; by default 4, or that of the loaded LoRA.
        targets: Ends of the names of the layers that get one; by default those of attention.
    """
    step = step_of(policy.network)
    for denoiser in step.denoisers.values():
        adapters.adapt(denoiser, rank, targets)
    return adapters.without_adapters(policy, step)


def coverage(policy: Policy) -> str:
    """On how many linear layers of each denoiser there are adapters, and which kinds have none."""
    told = []
    for name, denoiser in step_of(policy.network).denoisers.items():
        adapted = adapter_layers.adapter_layers(denoiser)
        inner = {id(part) for layer in adapted for part in layer.modules()}
        bare = {n: m for n, m in denoiser.named_modules() if isinstance(m, nn.Linear) and id(m) not in inner}
        weights = [layer.get_base_layer().weight.numel() for layer in adapted]
        share = sum(weights) / max(sum(weights) + sum(m.weight.numel() for m in bare.values()), 1)
        rank = 0
        if adapted:
            config = adapter_layers.carrier_of(denoiser).peft_config
            rank = config[adapter_layers.adapter_name(denoiser)].r
        kinds = list(dict.fromkeys(_kind(n) for n in bare))
        left = f"; none on {', '.join(kinds[:SHOWN])}" + (" and others" if len(kinds) > SHOWN else "")
        told.append(
            f"{name}: LoRA of rank {rank} on {len(adapted)} of {len(adapted) + len(bare)} linear layers,"
            f" {share:.0%} of their weights{left if kinds else ''}"
        )
    return "\n".join(told)


def save_lora(policy: Policy, folder: Path | str) -> None:
    """Writes the adapters of all denoisers, as `how_to_load` says that they are read."""
    step = step_of(policy.network)
    if (alone := _stranger(step)) is not None:
        adapters.save_lora(alone, folder)
        return
    weights, settings = {}, {}
    for part, denoiser in step.denoisers.items():
        name = adapter_layers.adapter_name(denoiser)
        found = adapter_layers.load_peft().get_peft_model_state_dict(denoiser, adapter_name=name)
        weights |= {f"{part}.{key}": w.detach().cpu().contiguous() for key, w in found.items()}
        config = adapter_layers.carrier_of(denoiser).peft_config[name].to_dict()
        settings |= {f"{part}.{key}": value for key, value in config.items()}
    about = {
        METADATA: json.dumps(settings, sort_keys=True, default=sorted)
    }  # several are written in any order
    with atomic_file(Path(folder) / LORA_FILE) as file:
        save_file(weights, file, metadata=about)


def load_lora(policy: Policy, folder: Path | str) -> None:
    """Adds saved adapters to a pipeline that has none. `lora` goes on with them.

    Raises:
        ValueError: If a denoiser carries adapters already, or if a weight belongs to no layer. diffusers
            would pass over it in silence.
    """
    step, path = step_of(policy.network), Path(folder) / LORA_FILE
    if (alone := _stranger(step)) is not None:
        adapters.load_lora(alone, folder)
        return
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapters: got no {LORA_FILE}; name a folder of save_lora")
    weights = read_tensors(path)
    with safe_open(path, "pt") as file:
        settings: dict[str, Any] = parse_json((file.metadata() or {}).get(METADATA, "{}"), path)
    for part, denoiser in step.denoisers.items():
        adapter_layers.check_bare(denoiser)
        own = {key: w for key, w in weights.items() if key.startswith(f"{part}.") or len(step.denoisers) == 1}
        fitted = adapter_layers.fitting(own, denoiser, f"{part}.", path)
        rank = next(w.shape[0] for key, w in fitted.items() if ".lora_A" in key)
        config = adapter_layers.config_for(
            denoiser, rank, sorted({key.rpartition(".lora")[0] for key in fitted}),
            settings.get(f"{part}.lora_alpha", rank),
        )  # fmt: skip
        adapter_layers.fill_adapters(denoiser, config, fitted, path)


def how_to_load(policy: Policy, pipe: Any, folder: Path | str) -> list[str]:
    """The lines of Python by which a fresh pipeline, `pipe`, gets the saved adapters."""
    step = step_of(policy.network)
    names = list(step.denoisers)
    if _stranger(step) is not None:
        line = f'pipe.{names[0]} = peft.PeftModel.from_pretrained(pipe.{names[0]}, "{folder}")'
        return ["import peft", line]
    if len(names) == 1 and "load_lora_weights" in dir(pipe):
        return [f'pipe.load_lora_weights("{folder}")']
    where = f'"{folder}", weight_name="{LORA_FILE}"'
    return [f'pipe.{name}.load_lora_adapter({where}, prefix="{name}")' for name in names]


def _stranger(step: Any) -> nn.Module | None:
    """The denoiser, if it is one that cannot load adapters by itself: then peft reads and writes them."""
    first = next(iter(step.denoisers.values()))
    return None if "load_lora_adapter" in dir(first) else first


def _kind(name: str) -> str:
    """What layers of one kind share of the ends of their names: ff.net.2."""
    return ".".join("N" if part.isdigit() and i < 2 else part for i, part in enumerate(name.split(".")[-3:]))
