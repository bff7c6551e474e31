"""Networks for sequences of tokens: one-hot states in, logits of every position's clean token out.

Both fit any vocabulary and length, and read straight-through states, whose gradients pass on to earlier steps.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.features import waves
from difftilt.shapes import Cond, OneHot, Output, Step


class MLP(nn.Module):
    """For sequences of up to about twenty tokens.

    Besides the tokens it sees the words of `window` neighbours, each with a vector of its own: interactions
    of neighbours are then looked up and need not be computed, which made the network learn the binding
    landscape of SIX6 in about half the time.

    Args:
        categories: Letters, K; the state has one more, the mask.
        length: Tokens per sequence.
        width: Units per layer.
        depth: Residual layers.
        window: Letters of a word, at most `length`; 0 is none. Its tables have (length - window + 1)
            (K + 1)^window rows.
    """

    def __init__(self, categories: int, length: int, width: int = 128, depth: int = 2, window: int = 0):
        super().__init__()
        _check_window(window, length)
        self.categories, self.length, self.window = categories, length, window
        self.letters = nn.Linear(length * (categories + 1), width)
        rows = (categories + 1) ** window
        self.words = nn.ModuleList(
            nn.Embedding(rows, width) for _ in range(length - window + 1 if window else 0)
        )
        for table in self.words:
            nn.init.normal_(table.weight, std=0.3 / math.sqrt(len(self.words)))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.logits = nn.Linear(width, length * categories)

    def forward(self, x: OneHot, t: Step, cond: Cond) -> Output:
        h = self.letters(x.flatten(1))
        for start, table in enumerate(self.words):
            h = h + _look_up(table.weight, x[:, start : start + self.window])
        for layer in self.layers:
            h = h + layer(h)
        return self.logits(F.silu(h)).view(-1, self.length, self.categories)
