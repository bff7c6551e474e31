"""5' UTRs of 50 letters: a masked diffusion model of random ones, and oracles of their ribosome load.

Tokens 0 to 3 are ACGT, T standing for U. The load of a UTR is the mean number of ribosomes on a transcript
that begins with it. Sample et al. (2019), https://doi.org/10.1038/s41587-019-0164-5.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from difftilt.data.libraries import UTR_LENGTH, load_utr
from difftilt.data.vocabulary import DNA
from difftilt.domains.split import Split
from difftilt.networks.bundle import Bundle, load_bundle, user_folder
from difftilt.networks.sequence import Convolutional
from difftilt.processes.masked import MaskedPolicy
from difftilt.shapes import PerSample, Sequences, State
from difftilt.transition import one_hot

LETTERS = len(DNA)
STEPS = 10
HELD_OUT = 14  # one UTR in so many, 20,000 in all, is seen by no network
ORACLES = ("proxy", "gold")


@dataclass(frozen=True)
class Measured:
    """UTRs with their measured loads."""

    sequence: Sequences
    load: PerSample


def load_split() -> Split[Measured]:
    """The measured UTRs, always split in the same way.

    Raises:
        ValueError: If the data are not on this machine, with how to get them.
    """
    return split(*load_utr())


def split(sequence: Sequences, load: PerSample) -> Split[Measured]:
    """Holds some UTRs out, and halves the rest."""
    order = torch.randperm(len(load), generator=torch.Generator().manual_seed(0))
    held_out = len(load) // HELD_OUT
    half = (len(load) - held_out) // 2
    rows = order[held_out : held_out + half], order[held_out + half :], order[:held_out]
    return Split(*(Measured(sequence[part], load[part]) for part in rows))


class Oracle(nn.Module):
    """A small convolutional network from UTRs to their loads.

    Besides tokens it reads one-hot vectors, and gradients pass through these.

    Args:
        width: Channels.
        kernel: Letters that a convolution sees.
        depth: Convolutions.
        features: Units of the layer before the last, which sees where in the UTR a channel was active.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int, kernel: int, depth: int, features: int):
        super().__init__()
        channels = [LETTERS] + [width] * depth
        convolutions = [
            layer
            for k in range(depth)
            for layer in (nn.Conv1d(channels[k], channels[k + 1], kernel, padding="same"), nn.SiLU())
        ]
        self.layers = nn.Sequential(
            *convolutions,
            nn.Flatten(),
            nn.Linear(UTR_LENGTH * width, features),
            nn.SiLU(),
            nn.Linear(features, 1),
        )
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, x: State) -> PerSample:
        letters = one_hot(x, LETTERS).to(self.mean.dtype).transpose(1, 2)
        return self.mean + self.spread * self.layers(letters)[:, 0]


def denoiser(width: int, kernel: int, depth: int) -> Convolutional:
    """An untrained network from masked UTRs to logits of every position's letter."""
    return Convolutional(LETTERS, UTR_LENGTH, width, kernel, depth)


def chain_of(network: nn.Module, steps: int) -> MaskedPolicy:
    """The chain of a network for UTRs: `steps` times it draws as many letters, at random positions."""
    return MaskedPolicy(network, LETTERS, UTR_LENGTH, steps=steps)


def utr_policy(steps: int = STEPS, *, folder: Path | None = None) -> MaskedPolicy:
    """The pretrained chain, which draws random UTRs like those that were measured.

    Args:
        steps: Transitions, 1 to 50; letters drawn in one step do not know of each other.
        folder: Weights; those in ~/.cache/difftilt/models/utr by default.
    """
    bundle = bundle_of(folder)
    return chain_of(bundle.load("model", denoiser(**bundle.config["network"])), steps)


def load_oracle(name: str, folder: Path | None = None) -> Oracle:
    """A pretrained oracle, frozen: `proxy` for rewards, `gold` to judge what came of them."""
    if name not in ORACLES:
        raise ValueError(f"the UTR oracles are 'proxy' and 'gold', but got {name!r}")
    bundle = bundle_of(folder)
    return bundle.frozen(name, Oracle(**bundle.config["oracle"]))


def load_measured(folder: Path | None = None) -> dict[str, Sequences]:
    """UTRs to compare with: `all`, held-out ones, and `best`, of the 1 % with the highest loads."""
    return {name: x.long() for name, x in bundle_of(folder).tensors("measured").items()}


def bundle_of(folder: Path | None) -> Bundle:
    """The networks in a folder; this user's own by default."""
    how = (
        "get the data with difftilt data fetch utr, or with difftilt data import utr PATH, and make them with"
        " difftilt pretrain utr"
    )
    return load_bundle(folder or user_folder("utr"), "models of 5' UTRs", how)
