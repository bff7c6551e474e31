"""Muon (Jordan et al., 2024): the momentum of a matrix is made orthogonal before each step.

In float32, for torch's own works in bfloat16, which most CPUs are slow at. https://arxiv.org/abs/2502.16982
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

ROUNDS, FACTORS = 5, (3.4445, -4.7750, 2.0315)  # of the Newton-Schulz iteration
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Muon for the matrices of a network's hidden layers, AdamW for all else.

    Args:
        network: Its hidden layers are its `layers`.
        learning_rate: How far a step moves a square matrix, in the spectral norm.
        adam_rate: The learning rate of AdamW.
    """

    def __init__(self, network: nn.Module, learning_rate: float, adam_rate: float):
        named = [(p, name.startswith("layers.") and p.ndim == 2) for name, p in network.named_parameters()]
        groups = [
            {"params": [p for p, inner in named if inner], "lr": learning_rate, "orthogonal": True},
            {"params": [p for p, inner in named if not inner], "lr": adam_rate, "orthogonal": False},
        ]
        super().__init__(groups, betas=(0.9, 0.98))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                state = self.state[weight]
                mean = state.setdefault("mean", torch.zeros_like(weight))
                state.setdefault("step", torch.zeros(()))  # AdamW loads no state without one
                mean.lerp_(weight.grad, 1 - MOMENTUM)
                step = orthogonal(weight.grad.lerp(mean, MOMENTUM))  # Nesterov's
                weight.sub_(step, alpha=group["lr"] * max(1, len(step) / len(step.T)) ** 0.5)
                weight.grad = None  # so that AdamW passes over it
        return super().step(closure)


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix of the same singular vectors, whose singular values lie near 1."""
    a, b, c = FACTORS
    tall = len(matrix) > len(matrix.T)
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x
