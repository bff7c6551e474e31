"""Masked diffusion models of sequences short enough that every score is known, such as DNA 8-mers.

Each is pretrained on the lower half of its landscape by score, so that "better than anything it has seen"
can be told exactly.
"""

import copy
from pathlib import Path

import torch.nn as nn

from difftilt.data.landscape import Landscape
from difftilt.data.vocabulary import DNA
from difftilt.networks.bundle import load_bundle, shipped_folder, user_folder
from difftilt.networks.sequence import MLP, BothStrands, corrected
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import Index

WIDTH, ROWS = 32, 2**12  # of the pretrained network
SHIPPED = "six6"


def landscape_network(landscape: Landscape, width: int = WIDTH, rows: int = ROWS) -> nn.Module:
    """An untrained network for a landscape; one of DNA answers alike for both strands.

    Args:
        width: Units per layer.
        rows: Of a table of words, which are as long as this allows.
    """
    letters, length = len(landscape.alphabet), landscape.length
    window = max(w for w in range(length + 1) if (letters + 1) ** w <= rows)
    network = MLP(letters, length, width, depth=1, window=window)
    nn.init.zeros_(network.logits.weight)  # the first distribution is uniform
    nn.init.zeros_(network.logits.bias)
    return BothStrands(network) if landscape.alphabet == DNA else network


def chain_of(network: nn.Module, landscape: Landscape, start: Index | None = None) -> MaskedPolicy:
    """The chain of a network, which draws one letter at a time in random order.

    Args:
        start: Tokens that stay, and masks elsewhere.
    """
    return MaskedPolicy(network, len(landscape.alphabet), landscape.length, start=start)


def landscape_policy(
    landscape: Landscape, start: Index | None = None, *, folder: Path | None = None
) -> MaskedPolicy:
    """The chain that was pretrained on the lower half of a landscape.

    Args:
        start: Tokens that stay, and masks elsewhere.
        folder: Weights; by default those that ship with the package, or those that
            pretraining wrote.

    Raises:
        ValueError: If there are none, with how to make them.
    """
    how = f"make one with {pretrain_command(landscape)}"
    bundle = load_bundle(folder or default_folder(landscape.name), f"model of {landscape.name}", how)
    network = bundle.load("model", landscape_network(landscape, **bundle.config["network"]))
    return chain_of(network, landscape, start)


def tunable(policy: MaskedPolicy, landscape: Landscape) -> MaskedPolicy:
    """A copy of a pretrained chain, and new values, zero at first, that correct its logits."""
    size, dna = (len(landscape.alphabet), landscape.length), landscape.alphabet == DNA
    network = corrected(copy.deepcopy(policy.network), *size, both_strands=dna)
    return chain_of(network, landscape, policy.start)


def pretrain_command(landscape: Landscape) -> str:
    """What to type for a model of a landscape."""
    recipe = f"dna --landscape {landscape.name}" if landscape.alphabet == DNA else "protein"
    return f"difftilt pretrain {recipe}"


def default_folder(name: str) -> Path:
    """Where the model of a landscape lies: in the package, or in ~/.cache/difftilt/models."""
    if name == SHIPPED:
        return shipped_folder("landscape") / name
    return user_folder(name)


def best_seen(landscape: Landscape) -> float:
    """The highest score in the lower half, from which models are pretrained."""
    return landscape.score[landscape.lower_half()].max().item()
