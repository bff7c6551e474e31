"""A trust region: the step size follows how far a round moves the policy, in nats.

What a step size does depends on the network, its adapters and the noise of the gradient; a KL does not. The
adaptive step sizes of PPO in robotics (Rudin et al., 2022, https://arxiv.org/abs/2109.11978) are of this
kind, with one KL for all tasks; here it is what the rewards ask for.
"""

import math
from collections.abc import Callable, Mapping
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from difftilt.conditions import batch_size, take
from difftilt.policy import Policy, chain, law
from difftilt.settings import Positive, check_value
from difftilt.shapes import Cond, PerSample

FIRST, SEARCH = 0.03, 5  # of the learning rate in round 0, and the rounds that find the right one
FASTEST, RANGE = 10.0, (1e-3, 30.0)  # change in a round, and in all
LARGEST = 0.03  # Adam's step size that nothing grows beyond: weights of most networks are not much larger
ENOUGH, FAR = 1.0, 5.0  # nats in a round, above which nothing grows, and which no round should exceed
SETTLED = 0.1  # of the learning rate, below which a schedule has its way
PER_CHAIN, FEWEST, MOST = 32, 2, 16  # samples of a round for each chain that is watched


class TrustRegion:
    """Scales the policy's learning rate between rounds, by how far a round has moved the policy:

        moved = KL(p || p_old) on chains of p_old,     asked = Var(r / alpha - kl) / 2.

    `asked` is, to second order, the KL of p_r to the reference: how far there is to go at all. A round that
    moves by more than a share of it, or by more than FAR, is mostly led by noise, and ends below where it
    began: steps shrink. While it moves by less they grow, above the given learning rate only while it moves
    by less than ENOUGH. Where the rate falls by a schedule, these KLs fall by the square of it.

    The factor is kept with the optimizer's first group, which is the policy's, and so is saved with it.

    Args:
        share: Of `asked` that a round may move by, above 0.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, accelerator: Accelerator, share: float):
        check_value("trust_region", share, Positive)
        self._optimizer, self._accelerator, self._share = optimizer, accelerator, share
        self._moved: Callable[[], PerSample] | None = None

    def begin(self, policy: Policy, cond: Cond, number: int) -> float:
        """Draws the chains that are watched and scales the learning rate for a round; returns it."""
        self._moved, group = watched(policy, cond), self._optimizer.param_groups[0]
        group["plain"] = group["lr"]
        start = 1.0 if number else FIRST  # a run that began without a trust region goes on as it did
        group["lr"] *= group.setdefault("factor", start)
        return group["lr"]

    def update(self, row: Mapping[str, float]) -> None:
        """Finds the factor of the next round, given this one's last row; it is the same in all processes."""
        if self._moved is None:
            raise ValueError("a round ends that has not begun; call begin before its first step")
        group, number = self._optimizer.param_groups[0], row["round"]
        group["lr"] = rate = group.pop("plain")
        moved = cast(Tensor, self._accelerator.reduce(self._moved().mean(), "mean")).item()
        fall, asked = rate / group.get("initial_lr", rate), row.get("asked_nats", math.nan)
        if fall < SETTLED or not math.isfinite(asked):
            return
        most = min(self._share * asked, FAR) * fall**2
        enough = min(most, ENOUGH * fall**2)
        goal = enough if moved < enough else most
        change = (goal / moved) ** 0.5 if moved > 0 else FASTEST
        change = min(max(change, 1 / FASTEST), FASTEST) ** (1 if number < SEARCH else 0.5)
        factor, ceiling = group["factor"], min(RANGE[1], max(LARGEST * fall / rate, 1.0))
        if enough <= moved <= most:  # up to what was asked for, not beyond
            ceiling = min(max(factor, 1.0), ceiling)
        group["factor"] = min(max(factor * change, RANGE[0]), ceiling)


def watched(policy: Policy, cond: Cond) -> Callable[[], PerSample]:
    """Draws a few of a round's chains; what is returned says how far each has moved since, in nats."""
    batch = batch_size(cond)
    some = take(cond, torch.arange(min(max(batch // PER_CHAIN, FEWEST), MOST, batch)))
    drawn = list(chain(policy, some))

    @torch.no_grad()
    def moved() -> PerSample:
        kls = list[PerSample]()
        for d in drawn:
            kls.append(law(policy, d.x, d.t, some).kl(d.step))
        return torch.stack(kls).sum(0)

    return moved
