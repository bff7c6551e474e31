"""Weights that are kept in float16 to be small, and used in float32."""

from pathlib import Path

import torch.nn as nn
from safetensors.torch import load_file, save_file


def save_half(network: nn.Module, path: Path) -> None:
    """Writes a network's weights in float16."""
    save_file({name: weight.half() for name, weight in network.state_dict().items()}, path)


def load_half(network: nn.Module, path: Path) -> None:
    """Reads a network's weights, kept in float16, as float32."""
    network.load_state_dict({name: weight.float() for name, weight in load_file(path).items()})
