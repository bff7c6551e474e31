"""Predictor and corrector (Song et al., 2021): moves between the steps of a chain that keep its marginals.

They are decisions of a longer chain, which is a policy again, so that their KL and density come from where
those of every step come from.
"""

from collections.abc import Callable
from typing import Literal

import torch

from difftilt.conditions import take
from difftilt.policy import Diffusion, Policy, Wrapped
from difftilt.shapes import Cond, Real, State, Step
from difftilt.transition import Gaussian, Transition, gaussian, join

Corrector = Literal["gibbs", "langevin"]
Slope = Callable[[State, Step, Cond], Real]
PREDICT, NOISE, LANGEVIN = range(3)


class Corrected(Wrapped):
    """A chain that makes corrector moves after each of its steps.

    `gibbs`, of any states: x_{t-1} is noised to x_t ~ q(x_t | x_{t-1}), and the step is taken again. The
    optimal chain keeps the conditional distribution q of x_t, so these are the two conditionals of one joint
    distribution, and the moves leave its marginals as they are, as far as the reference reverses q.

    `langevin`, of real states at t > 0: with the score s(x) = (a E[x_0 | x_t] - x) / sigma^2 of the process,

        x <- x + h (s(x) + slope(x)) + sqrt(2 h) z,   h = step sigma^2,

    which leaves the distribution of the score s + slope as it is, up to an error in h.

    Args:
        policy: The chain whose steps are taken, whose weights it uses.
        process: The pretrained chain, for its noise and its score.
        corrector: The kind of move.
        corrections: How many after each step, at least 1.
        step: Size of a Langevin move, in units of sigma^2, above 0.
        slope: grad v_t / alpha, if the distribution is to be tilted by it; for `langevin`.

    Source:
        Song et al. (2021), Algorithm 5. https://arxiv.org/abs/2011.13456
    """

    def __init__(
        self,
        policy: Policy,
        process: Diffusion,
        corrector: Corrector,
        corrections: int,
        step: float,
        slope: Slope | None = None,
    ):
        super().__init__(policy)
        self._process = (process,)  # in a tuple: its weights are not this module's
        self.step, self.slope = step, slope
        moves = [m for t in range(policy.steps, 0, -1) for m in _after(t, corrector, corrections)]
        self.steps = len(moves)
        self._kind, self._level = (torch.tensor(column) for column in zip(*moves, strict=True))

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        kind, level = (table.to(t.device)[self.steps - t] for table in (self._kind, self._level))
        if bool((kind == kind[0]).all()):
            return self._law(int(kind[0]), x, level, cond)
        parts = []
        for one in kind.unique().tolist():
            rows = (kind == one).nonzero()[:, 0]
            parts.append((rows, self._law(one, x[rows], level[rows], take(cond, rows))))
        return join(parts)

    def _law(self, kind: int, x: State, t: Step, cond: Cond) -> Transition:
        if kind == PREDICT:
            return self.base(x, t, cond)
        return self._process[0].noising(x, t) if kind == NOISE else self._langevin(x, t, cond)

    def _langevin(self, x: State, t: Step, cond: Cond) -> Gaussian:
        process = self._process[0]
        noised = process.noised(process.clean(x, t, cond), t)
        noised = gaussian(noised, "Langevin moves need Gaussian noise", "use corrector 'gibbs'")
        mean = x + self.step * (noised.mean - x)
        if self.slope is not None:
            mean = mean + self.step * noised.std**2 * self.slope(x, t, cond)
        return Gaussian(mean, (2 * self.step) ** 0.5 * noised.std)


def _after(t: int, corrector: Corrector, count: int) -> list[tuple[int, int]]:
    """The step at t and the moves that follow it, each with its level."""
    if corrector == "gibbs":
        return [(PREDICT, t)] + [(NOISE, t), (PREDICT, t)] * count
    return [(PREDICT, t)] + [(LANGEVIN, t - 1)] * (count if t > 1 else 0)
