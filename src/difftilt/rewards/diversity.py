"""A diversity filter: samples that are like many before them earn less, so that others are worth finding."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from difftilt.shapes import PerSample, Sample, State

# The bins of samples, by name, given the names of those known; None of a sample that belongs to none. A new
# bin is called after its first sample, which later ones of the same batch may join.
Alike = Callable[[State, Sequence[str]], Sequence[str | None]]
MOST = 2**14  # bins that are remembered
CLOSE = 0.2  # share of letters that differ, up to which texts are similar


class DiversityFilter:
    """Prices a sample by how often samples of its bin were drawn before: strength log(n / bucket), or 0.

    Each batch is priced by what was drawn before it, so within a batch the reward stays a function of the
    sample. Where a policy is tuned to its optimum while counts grow, its bins end with shares that are those
    of p* to the power 1 / (1 + strength), and inside each bin it is p*: well-tempered metadynamics, in which
    bins play the part of the coordinate that is explored.

    The scaffold memory that this follows takes the whole reward of a full bin; that needs rewards of at least
    0, and an end that is not known. Here the price is in nats, alike for every reward and alpha.

    Args:
        alike: Tells the bins.
        bucket: Samples of a bin that cost nothing, at least 1.
        strength: Of the price, above 0; 1 takes the square root of the shares.
    Source:
        Blaschke et al. (2020), https://doi.org/10.1186/s13321-020-00473-0; Barducci et al. (2008),
        https://doi.org/10.1103/PhysRevLett.100.020603
    """

    def __init__(self, alike: Alike, bucket: int = 25, strength: float = 1.0):
        self._alike, self._bucket, self._strength = alike, bucket, strength
        self._counts: dict[str, int] = {}  # by bin; the last seen comes last

    def __call__(self, sample: Sample) -> PerSample:
        names = self._alike(sample, list(self._counts))
        counts = [self._counts.get(name, 0) if name is not None else 0 for name in names]
        for name in names:
            if name is not None:
                self._counts[name] = self._counts.pop(name, 0) + 1
        if len(self._counts) > MOST:
            self._forget()
        over = [math.log(max(count / self._bucket, 1.0)) for count in counts]
        return self._strength * torch.tensor(over, dtype=torch.float32, device=sample.device)

    def state_dict(self) -> dict[str, Any]:
        """The bins and how often each was seen, for a checkpoint; each process keeps its own."""
        return {"bins": list(self._counts), "counts": list(self._counts.values())}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._counts = dict(zip(state_dict["bins"], state_dict["counts"], strict=True))

    def _forget(self) -> None:
        """Lets go of the bins that were seen least; of equals, the longest ago."""
        newest = list(self._counts.items())[::-1]
        kept = dict(sorted(newest, key=lambda pair: -pair[1])[:MOST])
        self._counts = {name: count for name, count in self._counts.items() if name in kept}


def texts_alike(spell: Callable[[State], list[str]]) -> dict[str, Alike]:
    """When samples are alike that are spelt as text: `same`; or `similar`, but for a fifth of their letters.

    A text is similar to the nearest of the first ones of the bins, letter by letter from the start.
    """

    def similar(sample: State, known: Sequence[str]) -> list[str]:
        texts, found = [*known, *spell(sample)], list[str]()
        letters = np.array(texts).view(np.uint32).reshape(len(texts), -1)
        lengths = np.array([*map(len, texts)])
        leaders = list(range(len(known)))
        for row in range(len(known), len(texts)):
            differing = (letters[leaders] != letters[row]).sum(1)
            away = differing / np.maximum(lengths[leaders], lengths[row]).clip(min=1)
            if not leaders or away.min() > CLOSE:
                leaders.append(row)
                found.append(texts[row])
            else:
                found.append(texts[leaders[int(away.argmin())]])
        return found

    return {"same": lambda sample, known: spell(sample), "similar": similar}
