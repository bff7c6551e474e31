"""One step of a Markov chain: the distribution p(x_{t-1} | x_t)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from difftilt.shapes import Counts, Index, OneHot, PerPosition, PerSample, Probs, Real, State, Tokens


class Transition(ABC):
    """p(x_{t-1} | x_t) for a batch of states: a dataclass whose fields have one row per state."""

    @abstractmethod
    def sample(self) -> State:
        """Draws x_{t-1} without gradients."""

    @abstractmethod
    def rsample(self) -> State:
        """Draws x_{t-1} so that gradients flow through the draw; straight-through if discrete."""

    @abstractmethod
    def log_prob(self, x: State) -> PerSample:
        """log p(x | x_t) in nats, summed over the event, never averaged."""

    @abstractmethod
    def kl(self, other: Any) -> PerSample:
        """KL(self || other) in nats, in closed form, for two transitions of one kind."""

    @abstractmethod
    def tempered(self, temperature: float) -> "Transition":
        """The distribution proportional to p^(1 / temperature): above 1 it explores, at 1 it is the same."""

    def rows(self, index: Index) -> "Transition":
        """The distributions of some of the states."""

        def chosen(value: Any) -> Any:
            return value.rows(index) if isinstance(value, Transition) else value[index]

        return replace(cast(Any, self), **{name: chosen(value) for name, value in rows_of(self).items()})


@dataclass(frozen=True)
class Gaussian(Transition):
    """N(mean, diag(std^2)), with std > 0: a deterministic last step belongs in `Policy.decode`.

    Args:
        mean: Kept in float32 or better, whatever the network computed in.
        std: As `mean`; same shape.
    """

    mean: Real
    std: Real

    def __post_init__(self):
        _check_precision(self.mean, self.std)

    @torch.no_grad()
    def sample(self) -> State:
        return self.rsample()

    def rsample(self) -> State:
        return self.mean + self.std * torch.randn_like(self.mean)

    def log_prob(self, x: State) -> PerSample:
        z = (x - self.mean) / self.std
        return event_sum(-(z**2) / 2 - self.std.log() - math.log(2 * math.pi) / 2)

    def kl(self, other: "Gaussian") -> PerSample:
        log_ratio, shift = (self.std / other.std).log(), (self.mean - other.mean) / other.std
        # expm1 keeps the KL of nearly equal variances free of cancellation
        return event_sum(torch.expm1(2 * log_ratio) / 2 - log_ratio + shift**2 / 2)

    def tempered(self, temperature: float) -> "Gaussian":
        return Gaussian(self.mean, self.std * temperature**0.5)


@dataclass(frozen=True)
class Categorical(Transition):
    """One independent category per position."""

    probs: Probs

    def __post_init__(self):
        _check_precision(self.probs)

    def sample(self) -> State:
        return _multinomial(self.probs)

    def rsample(self) -> State:
        """Draws one-hot vectors that carry the gradient of the probabilities (straight-through)."""
        return _straight_through(self.sample(), self.probs)

    def log_prob(self, x: State) -> PerSample:
        return event_sum(self.probs.gather(-1, x[..., None]).log())

    def kl(self, other: "Categorical") -> PerSample:
        return event_sum(relative_entropy(self.probs, other.probs))

    def tempered(self, temperature: float) -> "Categorical":
        return Categorical(_tempered(self.probs, temperature))


@dataclass(frozen=True)
class Resampling(Transition):
    """Draws new tokens at `count` of the eligible positions; every choice of positions is as likely.

    A chosen position always changes, so `probs` is 0 at its present token. The distribution of the positions
    is the same for all parameters: it cancels in ratios, and one position at a time can reach any target.

    Args:
        x: The state: tokens, or one-hot vectors of `rsample`, which may carry gradients.
        eligible: Which positions may change, as 0 and 1; it weighs their KL, so it may carry gradients too.
        probs: Of the new token at each position.
        count: How many positions change, at most as many as are eligible.
    """

    x: State
    eligible: PerPosition
    probs: Probs
    count: Counts

    def __post_init__(self):
        _check_precision(self.probs)

    @torch.no_grad()
    def sample(self) -> State:
        return self._draw()[1]

    def rsample(self) -> State:
        """Draws one-hot vectors that carry the gradient of the probabilities (straight-through)."""
        chosen, token = self._draw()
        x = one_hot(self.x, self.probs.shape[-1]).to(self.probs.dtype)
        return torch.where(chosen[..., None], _straight_through(token, self.probs), x)

    def log_prob(self, x: State) -> PerSample:
        changed = x != tokens(self.x)
        allowed = self.eligible.detach() > 0.5
        p = self.probs.gather(-1, x[..., None])[..., 0]
        impossible = (changed & ~allowed).any(1) | (changed.sum(1) != self.count)
        total = event_sum(torch.where(changed, p, 1).log()) - _log_choose(allowed.sum(1), self.count)
        return torch.where(impossible, -torch.inf, total)

    def kl(self, other: "Resampling") -> PerSample:
        each = relative_entropy(self.probs, other.probs).sum(-1)
        share = self.count / self.eligible.detach().to(self.probs.dtype).sum(1).clamp(min=1)
        return event_sum(torch.where(self.eligible > 0, each, 0) * self.eligible) * share

    def tempered(self, temperature: float) -> "Resampling":
        """That of the tokens; the positions are drawn as before."""
        return Resampling(self.x, self.eligible, _tempered(self.probs, temperature), self.count)

    def _draw(self) -> tuple[Tensor, Tensor]:
        """Which positions change, and the new state's tokens. Only what changes is drawn."""
        noise = torch.rand_like(self.probs[..., 0]).where(self.eligible > 0.5, 2.0)
        chosen = noise.argsort(1).argsort(1) < self.count[:, None]
        drawn = tokens(self.x).clone()
        drawn[chosen] = _multinomial(self.probs.detach()[chosen])
        return chosen, drawn


@dataclass(frozen=True)
class Joined(Transition):
    """Rows whose distributions are of several kinds, in the order of the rows.

    Args:
        parts: The rows that each distribution covers, and the distribution. Every row is covered once.
    """

    parts: Sequence[tuple[Index, Transition]]

    def sample(self) -> State:
        return self._join([law.sample() for _, law in self.parts])

    def rsample(self) -> State:
        return self._join([law.rsample() for _, law in self.parts])

    def log_prob(self, x: State) -> PerSample:
        return self._join([law.log_prob(x[rows]) for rows, law in self.parts])

    def kl(self, other: "Joined") -> PerSample:
        covered, compared = ([rows.tolist() for rows, _ in joined.parts] for joined in (self, other))
        if covered != compared:
            raise ValueError(
                "two joined distributions cover different rows; give both chains the same number of steps"
            )
        pairs = zip(self.parts, other.parts, strict=True)
        return self._join([law.kl(other_law) for (_, law), (_, other_law) in pairs])

    def tempered(self, temperature: float) -> "Joined":
        return Joined([(rows, law.tempered(temperature)) for rows, law in self.parts])

    def rows(self, index: Index) -> Transition:
        """The distributions of some of the states."""
        found, start = [], 0
        place = torch.cat([rows for rows, _ in self.parts]).argsort()[index]
        for rows, law in self.parts:
            here = ((place >= start) & (place < start + len(rows))).nonzero()[:, 0]
            if len(here):
                found.append((here, law.rows(place[here] - start)))
            start += len(rows)
        return found[0][1] if len(found) == 1 else join(found)

    def _join(self, values: list[Tensor]) -> Tensor:
        return torch.cat(values)[torch.cat([rows for rows, _ in self.parts]).argsort()]


def join(parts: Sequence[tuple[Index, Transition]]) -> Transition:
    """The distribution of rows whose distributions came in parts, each with the rows that it covers."""
    laws = [law for _, law in parts]
    if all(isinstance(law, Gaussian) for law in laws):
        order = torch.cat([rows for rows, _ in parts]).argsort()
        return Gaussian(*(torch.cat([getattr(law, name) for law in laws])[order] for name in ("mean", "std")))
    return Joined(parts)


def rows_of(step: Transition) -> dict[str, Any]:
    """The fields of a distribution, each with one row per state."""
    if not is_dataclass(step):
        raise ValueError(
            f"the rows of a {type(step).__name__} are not known; make it a dataclass whose fields have one"
            " row per state"
        )
    return {field.name: getattr(step, field.name) for field in fields(step)}


def gaussian(step: Transition, need: str, instead: str) -> Gaussian:
    """The step, if it is a Gaussian; else an error of what needs one and what to do instead."""
    if not isinstance(step, Gaussian):
        raise ValueError(f"{need}, but got a {type(step).__name__}; {instead}")
    return step


def event_sum(x: Real) -> PerSample:
    """Sums over the event in float64.

    Ratios are differences of two such sums, and a float32 sum over 64 pixels is already 1e-5 off.
    """
    dtype = x.dtype if x.device.type == "mps" else torch.float64  # Apple GPUs have no float64
    return x.flatten(1).sum(1, dtype=dtype)


def tokens(x: State) -> Tokens:
    """States as integers, if they came as one-hot vectors."""
    return x.argmax(-1) if x.is_floating_point() else x


def one_hot(x: State, categories: int) -> OneHot:
    """States as one-hot vectors, if they came as integers."""
    return x if x.is_floating_point() else F.one_hot(x, categories)


@torch.no_grad()
def _multinomial(probs: Tensor) -> Tensor:
    return torch.multinomial(probs.flatten(0, -2), 1).view(probs.shape[:-1])


def _straight_through(token: Tensor, probs: Tensor) -> Tensor:
    hard = F.one_hot(token, probs.shape[-1]).to(probs.dtype)
    return hard + (probs - probs.detach())  # in this order the value stays exactly one-hot


def _tempered(probs: Tensor, temperature: float) -> Tensor:
    return (probs.log() / temperature).softmax(-1)


def relative_entropy(p: Tensor, q: Tensor) -> Tensor:
    """The share of each category in KL(p || q)."""
    return _xlog(p, p) - _xlog(p, q)


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    n, k = n.double(), k.double()
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _check_precision(*parameters: Tensor) -> None:
    for x in parameters:
        if x.dtype.itemsize < 4:
            raise ValueError(
                f"a distribution's parameters need float32 or better, but got {x.dtype}; lift what the"
                " network puts out before you compute with it"
            )


def _xlog(p: Tensor, q: Tensor) -> Tensor:
    """p log q, with 0 log 0 = 0 in the value and in the gradient."""
    return p * torch.where(p > 0, q, 1).log()
