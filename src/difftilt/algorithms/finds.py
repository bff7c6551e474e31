"""What a search has found: samples with their rewards, weighed so that together they stand for p_r."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from difftilt.conditions import context_keys, rows_as_bytes
from difftilt.shapes import Cond, Index, PerSample, Some, State


class Finds:
    """Samples, each of weight exp(base + r / alpha) among those of its conditions.

    Attributes:
        counted: Whether each is held once, as tokens are, so that weights are those of p_r itself; else
            samples are draws, and weights make up for how they were drawn.
        x_0: Clean states.
        reward: r(x_0).
        base: In nats: log p_pre(x_0) where samples are counted; else log of p_pre over what drew it.
        context: A number per sample, equal where all conditions are equal.
    """

    def __init__(self, x_0: State):
        """Nothing yet.

        Args:
            x_0: Some states, for their shape.
        """
        self.counted = not x_0.is_floating_point()
        self.x_0, self.context = x_0[:0], torch.zeros(0, dtype=torch.long, device=x_0.device)
        self.reward = self.base = torch.zeros(0, dtype=torch.float64, device=x_0.device)
        self._numbers: dict[str, int] = {}  # of contexts, by their hash
        self._known: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.reward)

    def log_weight(self, alpha: float) -> Some:
        """In nats, up to a constant of each context."""
        return self.base + self.reward / alpha

    def contexts(self, cond: Cond) -> Index:
        """The number of each sample's context."""
        keys = context_keys(cond, lasting=True)
        numbers = [self._numbers.setdefault(key, len(self._numbers)) for key in keys]
        return torch.tensor(numbers, device=self.x_0.device)

    def has(self, context: Index) -> Index:
        """Those rows in whose context there is any sample."""
        return torch.isin(context, self.context).nonzero()[:, 0]

    def fresh(self, x_0: State, context: Index) -> Index:
        """Rows that are not held, each once; all, if samples are not counted."""
        if not self.counted:
            return torch.arange(len(x_0), device=x_0.device)
        first = {key: row for row, key in reversed(list(enumerate(_keys(x_0, context))))}
        rows = sorted(row for key, row in first.items() if key not in self._known)
        return torch.tensor(rows, dtype=torch.long, device=x_0.device)

    def add(self, x_0: State, context: Index, reward: PerSample, base: PerSample) -> None:
        """Holds these as well."""
        self._known |= self._keys(x_0, context)
        self.x_0, self.context = torch.cat([self.x_0, x_0]), torch.cat([self.context, context])
        self.reward = torch.cat([self.reward, reward.double()])
        self.base = torch.cat([self.base, base.double()])

    def forget(self, most: int, alpha: float) -> None:
        """Keeps that many: of tokens those of most weight, of real numbers the newest."""
        if len(self) > most:
            rank = -self.log_weight(alpha) if self.counted else -torch.arange(len(self))
            rows = rank.argsort()[:most].sort().values.to(self.x_0.device)
            self.x_0, self.context = self.x_0[rows], self.context[rows]
            self.reward, self.base = self.reward[rows], self.base[rows]
            self._known = self._keys(self.x_0, self.context)

    def log_mass(self, context: Index, alpha: float, temperature: float = 1.0) -> Some:
        """Of each context, in nats: the sum of weight^(1 / temperature), or the mean if not counted."""
        log_w = self.log_weight(alpha) / temperature
        return log_mass(log_w, self.context, context, mean=not self.counted)

    def draw(self, context: Index, alpha: float, temperature: float = 1.0) -> Index:
        """For each context, which `has` one, a sample of it, by weight^(1 / temperature)."""
        log_w, drawn = self.log_weight(alpha) / temperature, torch.empty_like(context)
        for number in context.unique():
            asked, rows = context == number, (self.context == number).nonzero()[:, 0]
            chosen = log_w[rows].softmax(0).multinomial(int(asked.sum()), replacement=True)
            drawn[asked] = rows[chosen]
        return drawn

    def _keys(self, x_0: State, context: Index) -> set[bytes]:
        """What samples that are held once are known by."""
        return set(_keys(x_0, context)) if self.counted else set()

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and a list, for a checkpoint."""
        names = ("x_0", "context", "reward", "base")
        return {name: getattr(self, name) for name in names} | {"contexts": list(self._numbers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in ("x_0", "context", "reward", "base"):
            setattr(self, name, state[name])
        self._numbers = {key: number for number, key in enumerate(state["contexts"])}
        self._known = self._keys(self.x_0, self.context)


def log_mass(log_w: Some, ids: Index, asked: Index, mean: bool) -> Some:
    """log of the sum, or the mean, of the weights of each group asked for; minus infinity of an empty one."""
    found = torch.full(asked.shape, -torch.inf, dtype=log_w.dtype, device=log_w.device)
    for number in asked.unique():
        members = log_w[ids == number]
        found[asked == number] = members.logsumexp(0) - (math.log(max(len(members), 1)) if mean else 0)
    return found


def _keys(x_0: State, context: Index) -> list[bytes]:
    pairs = zip(rows_as_bytes(x_0), rows_as_bytes(context), strict=True)
    return [row + number for row, number in pairs]
