"""The distribution of the best of n independent samples, and what it costs."""

import math

from difftilt.shapes import Points


def best_of(law: Points, scores: Points, n: int) -> Points:
    """The distribution of the sample with the highest score among n, drawn from a distribution on finitely
    many samples.

    Samples with equal scores keep their proportions, so a score s is the best with probability
    F(s)^n - F(s-)^n, where F is the score's distribution.
    """
    levels, place = scores.unique(return_inverse=True)
    mass = law.new_zeros(len(levels)).index_add(0, place, law)
    below = mass.cumsum(0) / mass.sum()
    best = (below**n).diff(prepend=below.new_zeros(1))
    return law * (best / mass.where(mass > 0, 1))[place]


def kl_of_best(n: int) -> float:
    """log n - (n - 1) / n: KL in nats of the best of n from the distribution of each; with ties it is less.

    Source:
        Beirami et al. (2024), Theorem 3.1. https://arxiv.org/abs/2401.01879
    """
    return math.log(n) - (n - 1) / n
