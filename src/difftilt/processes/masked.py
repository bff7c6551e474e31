"""Masked diffusion of sequences: noise hides tokens, and the chain draws them one after the other.

Sahoo et al. (2024, MDLM), https://arxiv.org/abs/2406.07524, and any-order autoregression (Hoogeboom et al.,
2022), https://arxiv.org/abs/2110.02037.
"""

from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.conditions import batch_size
from difftilt.policy import Decode, Diffusion, as_it_is
from difftilt.shapes import Cond, Counts, Index, PerPosition, PerSample, Probs, Sample, State, Step
from difftilt.transition import Categorical, Resampling, Transition, one_hot, tokens

Unmasking = Literal["positions", "bernoulli"]


class MaskedPolicy(Diffusion):
    """A chain that starts from masks. Its step at t draws tokens from the network's guess of x_0.

    `positions` unmasks a fixed number of masked positions, chosen at random: with T = length it is one at a
    time, and any distribution of x_0 can be reached, for p* keeps the distribution of the order. `bernoulli`
    unmasks each masked position with probability 1 / t, so that several tokens of one step are drawn without
    knowing of each other.

    Args:
        network: Maps (one-hot states of `categories` + 1, t, cond) to logits (batch, length, categories).
        categories: K, how many tokens there are, 0 to K - 1; token K is the mask.
        length: Tokens per sample.
        steps: T; by default one for each position that is masked at first.
        unmasking: The distribution of the positions.
        start: x_T, masks by default; a position that holds a token keeps it.
        decode: Maps x_0, tokens or one-hot vectors without the mask, to what rewards score.
    """

    start: Tensor
    left: Tensor

    def __init__(
        self,
        network: nn.Module,
        categories: int,
        length: int,
        *,
        steps: int | None = None,
        unmasking: Unmasking = "positions",
        start: Index | None = None,
        decode: Decode = as_it_is,
    ):
        super().__init__()
        start = torch.full((length,), categories) if start is None else start
        masked = int((start == categories).sum())
        _check(categories, length, masked, steps, unmasking, start)
        self.network, self.categories, self.unmasking = network, categories, unmasking
        self.symbols = categories + 1
        self.steps = steps or masked
        self._decode = decode
        self.register_buffer("start", start)
        share = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
        self.register_buffer("left", (share * masked).round().long())  # masks in x_t

    def initial(self, cond: Cond) -> Categorical:
        probs = F.one_hot(self.start, self.categories + 1).float()
        return Categorical(probs.expand(batch_size(cond), -1, -1))

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        return self.reveal(self.clean(x, t, cond), x, t)

    def posterior(self, x_0: State, x: State, t: Step) -> Transition:
        return self.reveal(one_hot(x_0, self.categories + 1)[..., : self.categories].float(), x, t)

    def reveal(self, clean: Probs, x: State, t: Step) -> Transition:
        """The step that draws masked positions from given probabilities of x_0."""
        probs, hidden = F.pad(clean, (0, 1)), self._hidden(x)
        if self.unmasking == "positions":
            return Resampling(x, hidden, probs, self.left[t] - self.left[t - 1])
        stay = F.one_hot(self.start.new_tensor(self.categories), self.categories + 1)
        drawn = torch.lerp(stay.to(probs), probs, (1 / t)[:, None, None].to(probs))
        return Categorical(
            torch.where(hidden[..., None] > 0, drawn, one_hot(x, self.categories + 1).to(probs))
        )

    def clean(self, x: State, t: Step, cond: Cond) -> Probs:
        """Probabilities of each position's token, given what is unmasked; unmasked ones are themselves."""
        seen = one_hot(x, self.categories + 1).float()
        logits = self.network(seen, t, cond)
        guess = logits.to(torch.promote_types(logits.dtype, seen.dtype)).softmax(-1)
        return torch.where(self._hidden(x)[..., None] > 0, guess, seen[..., : self.categories])

    def decode(self, x: State, cond: Cond) -> Sample:
        return self._decode(x[..., : self.categories] if x.is_floating_point() else x, cond)

    def noised(self, x_0: State, t: Step) -> Transition:
        return self._hide(x_0, self.left[t], t / self.steps)

    def signal(self, t: Step) -> PerSample:
        return 1 - t / self.steps

    def noising(self, x_next: State, t: Step) -> Transition:
        return self._hide(x_next, self.left[t] - self.left[t - 1], 1 / (self.steps - t + 1))

    def _hide(self, x: State, count: Counts, share: PerSample) -> Transition:
        """Masks `count` of the tokens that can be, or each with probability `share`, as `unmasking` says."""
        x = tokens(x)
        shown = ((x != self.categories) & (self.start == self.categories)).float()
        masks = F.one_hot(torch.full_like(x, self.categories), self.categories + 1).float()
        if self.unmasking == "positions":
            return Resampling(x, shown, masks, count)
        seen, weight = one_hot(x, self.categories + 1).float(), shown * share[:, None]
        return Categorical(torch.lerp(seen, masks, weight[..., None]))

    def _hidden(self, x: State) -> PerPosition:
        """1 where x is masked; of one-hot vectors, with their gradient."""
        return x[..., -1] if x.is_floating_point() else (x == self.categories).float()


def _check(
    categories: int, length: int, masked: int, steps: int | None, unmasking: Unmasking, start: Index
) -> None:
    if start.shape != (length,) or not 0 <= int(start.min()) <= int(start.max()) <= categories:
        raise ValueError(
            f"start needs {length} tokens from 0 to {categories}, where {categories} is the mask, but got"
            f" {start.tolist()}"
        )
    if masked == 0:
        raise ValueError("start has no masked position, so there is nothing to draw; leave some masked")
    if steps is not None and not 1 <= steps <= (masked if unmasking == "positions" else steps):
        raise ValueError(
            f"unmasking 'positions' of {masked} masked positions takes 1 to {masked} steps, but got {steps}"
        )
