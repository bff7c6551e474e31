"""Networks for sequences of tokens: one-hot states in, logits of every position's clean token out.

All fit any vocabulary, and all but `WordValues` pass gradients on through straight-through states.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from difftilt.data.vocabulary import all_sequences, place_values
from difftilt.shapes import Cond, Mask, OneHot, Output, Step, Tokens


class MLP(nn.Module):
    """For sequences of up to about twenty tokens.

    Besides the tokens it sees the words of `window` neighbours, each with a vector of its own: interactions
    of neighbours are then looked up and need not be computed.

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
        if not 0 <= window <= length:
            raise ValueError(f"window must lie between 0 and the length, {length}, but got {window}")
        self.categories, self.length, self.window = categories, length, window
        self.letters = nn.Linear(length * (categories + 1), width)
        words = length - window + 1 if window else 0
        tables = torch.randn(words, (categories + 1) ** window, width) * 0.3 / max(words, 1) ** 0.5
        self.words = nn.Parameter(tables)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.logits = nn.Linear(width, length * categories)

    def forward(self, x: OneHot, t: Step, cond: Cond) -> Output:
        h = self.letters(x.flatten(1))
        letters = None if x.requires_grad else _hard(x)
        places = place_values(self.categories + 1, self.window).to(x.device)
        for start, table in enumerate(self.words.unbind()):
            span = slice(start, start + self.window)
            if letters is None:
                h = h + _mean_row(table, x[:, span])
            else:
                h = h + F.embedding((letters[:, span] * places).sum(1), table)
        for layer in self.layers:
            h = h + layer(h)
        return self.logits(F.silu(h)).view(-1, self.length, self.categories)


class Convolutional(nn.Module):
    """For sequences of any length: residual convolutions, each of which sees twice as far as the one before.

    How much is masked it sees for itself, so it needs no t.

    Args:
        categories: Letters, K; the state has one more, the mask.
        length: Tokens per sequence.
        width: Channels.
        kernel: Letters that the first convolution sees, an odd number.
        depth: Convolutions.
    """

    def __init__(self, categories: int, length: int, width: int, kernel: int, depth: int):
        super().__init__()
        self.embed = nn.Conv1d(categories + 1, width, kernel, padding="same")
        self.position = nn.Parameter(0.1 * torch.randn(width, length))
        self.layers = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding="same", dilation=2**k) for k in range(1, depth)
        )
        self.out = nn.Conv1d(width, categories, 1)
        self.bias = nn.Parameter(torch.zeros(categories, length))
        nn.init.zeros_(self.out.weight)

    def forward(self, x: OneHot, t: Step, cond: Cond) -> Output:
        hidden = F.silu(self.embed(x.transpose(1, 2)) + self.position)
        for layer in self.layers:
            hidden = hidden + F.silu(layer(hidden))
        return (self.out(hidden) + self.bias).transpose(1, 2)


class Transformer(nn.Module):
    """For tokens that depend on others anywhere: every layer sees all of them.

    How much is masked it sees for itself, so it needs no t.

    Args:
        categories: Tokens, K; the state has one more, the mask.
        length: Tokens per sequence.
        width: Numbers per token, divisible by twice as many as `heads`.
        depth: Layers, of an attention and an MLP each.
        heads: Attention heads.
    Source:
        Vaswani et al. (2017), https://arxiv.org/abs/1706.03762, normalised first (Xiong et al., 2020), with
        rotary positions (Su et al., 2021, https://arxiv.org/abs/2104.09864) beside learned ones.
    """

    def __init__(self, categories: int, length: int, width: int, depth: int, heads: int):
        super().__init__()
        self.sizes = {"width": width, "depth": depth, "heads": heads}
        self.embed = nn.Linear(categories + 1, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, categories)
        nn.init.normal_(self.embed.weight, std=0.3)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: OneHot, t: Step, cond: Cond) -> Output:
        hidden = self.embed(x) + self.position
        for layer in self.layers:
            hidden = layer(hidden)
        return self.out(self.norm(hidden))


class _Layer(nn.Module):
    """Attention between tokens, which sees how far apart they are, then an MLP on each."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        frequency = 0.01 ** torch.linspace(0, 1, width // heads // 2)
        self.register_buffer("frequency", frequency, persistent=False)
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm_1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        angle = torch.arange(x.shape[1], device=x.device)[:, None] * self.get_buffer("frequency")
        attention = F.scaled_dot_product_attention(_turned(q, angle), _turned(k, angle), v)
        x = x + self.merge(attention.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm_2(x))


def _turned(x: Tensor, angle: Tensor) -> Tensor:
    """Pairs of numbers as vectors in the plane, turned by the angle of their position."""
    a, b = x.chunk(2, -1)
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


class Corrected(nn.Module):
    """A frozen network and a new one that is added to its logits: what tuning adds to a pretrained model.

    The new one should begin at zero.

    Args:
        base: Its weights stay as they are.
        correction: Of the same inputs and outputs.
    """

    def __init__(self, base: nn.Module, correction: nn.Module):
        super().__init__()
        self.base, self.correction = base.requires_grad_(False), correction

    def forward(self, x: OneHot, t: Step, cond: Cond) -> Output:
        return self.base(x, t, cond) + self.correction(x, t, cond)


class WordValues(nn.Module):
    """The logit of letter y at position i is g(x with y at i), a value of what follows; for short sequences.

    The optimal step is p_pre(x_{t-1} | x_t) exp(v(x_{t-1}) / alpha) up to a factor, so all that tuning has to
    add to pretrained logits is one number per state, v / alpha. Here g is a sum of numbers in tables, one
    for each word in x: words of the whole length can hold any value, shorter ones carry over to sequences
    that were not met. It begins at zero, and reads hard tokens, through which no gradient passes.

    Args:
        categories: Letters, K; the state has one more, the mask.
        length: Tokens per sequence, L; a table of whole words has (K + 1)^L numbers.
        words: Lengths of the words, at most L.
        both_strands: A word and its reverse complement share their number, for DNA in the order A, C, G, T.
    """

    def __init__(self, categories: int, length: int, words: Sequence[int], both_strands: bool = False):
        super().__init__()
        if not words or not 1 <= min(words) <= max(words) <= length:
            raise ValueError(f"words have 1 to {length} letters, but got lengths {list(words)}")
        self.categories, self.length = categories, length
        self.spans = [(start, size) for size in words for start in range(length - size + 1)]
        rows: list[Tensor] = []
        count = 0
        for start, size in self.spans:
            own = torch.arange((categories + 1) ** size)
            twin = (length - start - size, size)
            if both_strands and start > twin[0]:
                row = rows[self.spans.index(twin)][_mirrored(categories, size)]
            else:
                middle = both_strands and start == twin[0]
                row = count + (torch.minimum(own, _mirrored(categories, size)) if middle else own)
                count += len(own)
            rows.append(row)
        self.numbers = nn.Parameter(torch.zeros(count))
        for (start, size), row in zip(self.spans, rows, strict=True):
            self.register_buffer(f"row_{start}_{size}", row, persistent=False)

    def forward(self, x: OneHot, t: Step, cond: Cond) -> Output:
        x = _hard(x)
        letters = torch.arange(self.categories, device=x.device)
        logits = self.numbers.new_zeros(len(x), self.length, self.categories)
        for start, size in self.spans:
            word = x[:, start : start + size]
            place = place_values(self.categories + 1, size).to(x.device)
            without = (word * place).sum(1, keepdim=True) - word * place
            # the word with each letter at each position
            filled = without[..., None] + letters * place[:, None]
            row = self.get_buffer(f"row_{start}_{size}").take(filled)
            value = self.numbers.index_select(0, row.flatten()).view(row.shape)
            logits = logits + F.pad(value, (0, 0, start, self.length - start - size))
        return logits


def _mirrored(categories: int, size: int) -> Tensor:
    """The place of each word's reverse complement; masks stay masks."""
    word = all_sequences(categories + 1, size).flip(1)
    word = torch.where(word < categories, categories - 1 - word, word)
    return (word * place_values(categories + 1, size)).sum(1)


class BothStrands(nn.Module):
    """Reads double-stranded DNA in one direction: a sequence and its reverse complement share one answer.

    Of the two the network sees the one that sorts first, so the symmetry is exact and costs no second pass;
    where they are equal, the answer is averaged with its own mirror image.

    Args:
        network: On the letters A, C, G, T in this order, so that 3 - k pairs with k.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: OneHot, t: Step, cond: Cond) -> Output:
        mirror = torch.cat([x[..., :4].flip(1, 2), x[..., 4:].flip(1)], -1)
        here, there = _hard(x), _hard(mirror)
        turn = _sorts_before(there, here)[:, None, None]
        logits = self.network(torch.where(turn, mirror, x), t, cond)
        back = logits.flip(1, 2)
        alike = (here == there).all(1)[:, None, None]
        return torch.where(alike, (logits + back) / 2, torch.where(turn, back, logits))


def _sorts_before(a: Tokens, b: Tokens) -> Mask:
    """By the first token that differs; equal rows do not."""
    first = (a != b).long().argmax(1, keepdim=True)
    return (a.gather(1, first) < b.gather(1, first))[:, 0]


def corrected(base: nn.Module, categories: int, length: int, both_strands: bool = False) -> Corrected:
    """A pretrained network to tune: new values of whole sequences, of three quarters and of halves."""
    words = sorted({length, 3 * length // 4, length // 2} - {0}, reverse=True)
    return Corrected(base, WordValues(categories, length, words, both_strands))


def _hard(x: OneHot) -> Tokens:
    """The tokens of one-hot vectors; an argmax over so few numbers is several times slower."""
    return (x.detach() @ torch.arange(x.shape[-1], dtype=x.dtype, device=x.device)).round().long()


def _mean_row(table: Tensor, word: OneHot) -> Tensor:
    """Of relaxed letters, the mean over words, which carries their gradients."""
    weight = word[:, 0]
    for letter in word.unbind(1)[1:]:
        weight = (weight[:, :, None] * letter[:, None]).flatten(1)
    return weight @ table
