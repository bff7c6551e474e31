"""Several rewards as one: weighed, shaped, and asked one after the other where some cost more."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from difftilt.answers import Failure
from difftilt.conditions import take
from difftilt.guard import Guard, Reward
from difftilt.shapes import Cond, Index, PerSample, Sample, Some

Combine = Literal["sum", "product", "minimum"]
Shape = Callable[[PerSample], PerSample]
STEEPNESS = 10.0  # a sigmoid is .007 at its low and .993 at its high end
SEPARATOR = " + "


@dataclass(frozen=True)
class Part:
    """One reward among several.

    Args:
        name: What messages and reports call it.
        weight: Factor of a sum; exponent of a product; in a minimum, 1.
        shape: Makes a score of what the reward says, such as a desirability in [0, 1].
        gate: Where the parts are asked one after the other: the least shaped score with which a sample goes
            on to the next part.
    """

    name: str
    reward: Reward
    weight: float = 1.0
    shape: Shape | None = None
    gate: float | None = None


class Combined:
    """A weighted sum, a weighted geometric mean or the minimum of shaped rewards.

    Each part has a guard of its own, so that messages name it. Gradients pass if all parts have one. A sample
    without a valid score in one part has no valid reward.

    Args:
        parts: In the order in which they are asked: the cheap ones first, if there are gates.
        rule: `sum`, sum_i w_i s_i; `product`, prod_i s_i^(w_i / sum_j w_j), for scores of at least 0;
            `minimum`, min_i s_i.
        guards: The parts' guards, in their order.
        unasked: What a part counts as for a sample that a gate has stopped before it; with gates only.

    Raises:
        ValueError: If names are alike, weights are not above 0 where they are exponents, or a gate is given
            without `unasked`.
    """

    def __init__(
        self, parts: Sequence[Part], rule: Combine, guards: Sequence[Guard], unasked: float | None = None
    ):
        names = [part.name for part in parts]
        if len(parts) != len(set(names)):
            raise ValueError(f"two parts of the reward are called alike, but got {', '.join(names)}")
        if rule == "product" and any(part.weight <= 0 for part in parts):
            raise ValueError("the weights of a product are exponents, and must be above 0")
        if any(part.gate is not None for part in parts[:-1]) != (unasked is not None):
            raise ValueError(
                f"got {'a gate' if unasked is None else 'no gate'} and unasked {unasked}; state with unasked"
                " what a part counts as that a gate kept from being asked, and nothing without gates"
            )
        self._parts, self._rule, self._unasked = tuple(parts), rule, unasked
        self.guards: Mapping[str, Guard] = dict(zip(names, guards, strict=True))
        self.answers: Mapping[str, PerSample] = {}
        self.__name__ = SEPARATOR.join(names)

    def __call__(self, sample: Sample, cond: Cond) -> Any:
        asked, count = torch.arange(len(sample), device=sample.device), len(sample)
        other = torch.nan if self._unasked is None else self._unasked
        answers, scores, failed = {}, [], {}
        for part, guard in zip(self._parts, self.guards.values(), strict=True):
            if not len(asked):
                answers[part.name] = sample.new_full((count,), torch.nan, dtype=torch.float32)
                scores.append(torch.full_like(answers[part.name], other))
                continue
            answer = guard(sample[asked], take(cond, asked))
            failed |= {
                int(asked[i]): f"got no answer of '{part.name}': it {why}" for i, why in guard.reasons.items()
            }
            score = answer if part.shape is None else part.shape(answer)
            if self._rule == "product" and (score < 0).any():
                raise ValueError(f"part '{part.name}' of a product must be at least 0; give it a shape")
            answers[part.name] = _spread(answer.detach(), asked, count, torch.nan)
            scores.append(_spread(score, asked, count, other))
            asked = asked[answer.isfinite() & (part.gate is None or score.detach() >= part.gate)]
        self.answers = answers
        dtype = functools.reduce(torch.promote_types, [score.dtype for score in scores])
        total = self._joined(torch.stack([score.to(dtype) for score in scores]))
        return [Failure(failed[i]) if i in failed else total[i] for i in range(count)] if failed else total

    def prefetch(self, sample: Sample, cond: Cond) -> None:
        """The first part begins; what the others are asked depends on its answers."""
        next(iter(self.guards.values())).prefetch(sample, cond, len(sample))

    def state_dict(self) -> dict[str, Any]:
        return {name: guard.state_dict() for name, guard in self.guards.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, guard in self.guards.items():
            guard.load_state_dict(state[name])

    def _joined(self, scores: Any) -> PerSample:
        weights = scores.new_tensor([part.weight for part in self._parts])[:, None]
        if self._rule == "sum":
            return (weights * scores).sum(0)
        if self._rule == "minimum":
            return scores.amin(0)
        # a logarithm would have no gradient at 0
        return (scores ** (weights / weights.sum())).prod(0)


def _spread(values: Some, rows: Index, count: int, other: float) -> Some:
    """Values of some rows among all, and another value elsewhere."""
    if len(values) == count:
        return values
    return values.new_full((count,), other).index_put((rows,), values)


def sigmoid(low: float, high: float) -> Shape:
    """Rises from 0 to 1 between two scores; falls where the first is the larger one."""
    return lambda x: torch.sigmoid(STEEPNESS * (x - (low + high) / 2) / (high - low))


def double_sigmoid(low: float, high: float) -> Shape:
    """Near 1 between two scores and near 0 outside; each edge is a tenth of their distance wide."""
    edge = (high - low) / 10
    rises, falls = sigmoid(low - edge / 2, low + edge / 2), sigmoid(high + edge / 2, high - edge / 2)
    return lambda x: rises(x) * falls(x)


def step(low: float, high: float) -> Shape:
    """1 from one score to another, ends included, and 0 outside; it has no gradient."""
    return lambda x: ((x >= low) & (x <= high)).to(x.dtype).where(x.isfinite(), torch.nan)


def linear(low: float, high: float) -> Shape:
    """Rises evenly from 0 to 1 between two scores; falls where the first is the larger one."""
    return lambda x: ((x - low) / (high - low)).clamp(0, 1)


SHAPES: Mapping[str, Callable[[float, float], Shape]] = {
    "sigmoid": sigmoid,
    "double-sigmoid": double_sigmoid,
    "step": step,
    "linear": linear,
}
_FLOAT = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_URL = r"https?://[^/\s:]+(?::\d+)?(?:/\S*?)?"  # whose port is no weight
_TERM = re.compile(
    rf"^(?P<name>{_URL}|.+?)(?::(?P<weight>{_FLOAT}))?"
    rf"(?:@(?P<shape>[a-z-]+)\((?P<low>{_FLOAT}), ?(?P<high>{_FLOAT})\))?(?:>=(?P<gate>{_FLOAT}))?$"
)


def parse_terms(text: str, find: Callable[[str], Reward]) -> list[Part]:
    """The parts of a text such as `qed:0.3 + dock.py:score:0.7@sigmoid(-6,-9) + gc@step(0.4,0.6)>=0.5`.

    Each term is a name, and if wanted `:WEIGHT`, `@SHAPE(LOW,HIGH)` and `>=GATE`, in this order.

    Args:
        find: The reward of a name.

    Raises:
        ValueError: If a term is none of these.
    """
    parts = []
    for term in text.split(SEPARATOR):
        found = _TERM.match(term.strip())
        if found is None or re.search(r"[@>][^/]*$", found["name"]):
            raise ValueError(
                f"the reward's term {term!r} is no NAME[:WEIGHT][@SHAPE(LOW,HIGH)][>=GATE], such as"
                " qed:0.3@sigmoid(0.2,0.8)"
            )
        shape = None if found["shape"] is None else _shape(found["shape"], found["low"], found["high"])
        gate = None if found["gate"] is None else float(found["gate"])
        parts.append(Part(found["name"], find(found["name"]), float(found["weight"] or 1), shape, gate))
    return parts


def is_combined(text: str) -> bool:
    """Whether a text asks for more than a reward as it is."""
    found = _TERM.match(text.strip())
    return SEPARATOR in text or bool(found and (found["shape"] or found["weight"]))


def names_in(text: str) -> list[str]:
    """The rewards that a text asks for; the text itself if it asks for one as it is."""
    if not is_combined(text):
        return [text]
    return [part.name for part in parse_terms(text, lambda name: _nothing)]


def _nothing(sample: Sample, cond: Cond) -> PerSample:
    """Stands for a reward that is not looked for."""
    return torch.zeros(len(sample))


def _shape(name: str, *ends: str) -> Shape:
    low, high = map(float, ends)
    if name not in SHAPES:
        raise ValueError(f"there is no shape {name!r} for a reward: valid are {', '.join(SHAPES)}")
    if low == high or (low > high and name in ("step", "double-sigmoid")):
        raise ValueError(f"the shape {name} got the ends {low:g} and {high:g}; give the lower one first")
    return SHAPES[name](low, high)
