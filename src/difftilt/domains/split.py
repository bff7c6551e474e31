"""Labelled data in three parts, so that what judges has never seen what was learned from."""

from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

Part = TypeVar("Part")


@dataclass(frozen=True)
class Split(Generic[Part]):
    """Three disjoint parts of labelled data, each a dataclass of tensors.

    Args:
        proxy: The diffusion model and the proxy, which may be a reward, learn from it.
        gold: The diffusion model and the gold network, which only ever judges, learn from it.
        held_out: Nothing learns from it.
    """

    proxy: Part
    gold: Part
    held_out: Part

    @property
    def train(self) -> Part:
        """What the diffusion model learns from."""
        columns = zip(vars(self.proxy).values(), vars(self.gold).values(), strict=True)
        return type(self.proxy)(*(torch.cat(pair) for pair in columns))
