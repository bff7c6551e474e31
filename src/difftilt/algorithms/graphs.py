"""Whether the graphs of all steps are held, or each is computed again in the backward pass."""

from functools import cached_property
from itertools import accumulate

import torch

from difftilt.conditions import batch_size
from difftilt.objective import Experience
from difftilt.policy import Policy, Wrapped
from difftilt.samplers.memory import MIB, of_a_row
from difftilt.shapes import Cond, PerStep, State, Step
from difftilt.transition import Transition, join

HELD = 1024 * MIB  # what the graphs of a gradient step may take


class Graphs:
    """Decides once, when a policy and its conditions are known.

    Args:
        recompute: What the user asks for; None leaves it to the memory that the graphs take.
    """

    def __init__(self, recompute: bool | None):
        self._recompute, self._row = recompute, 0

    def measure(self, policy: Policy, cond: Cond) -> None:
        """Finds what one step of one chain takes, if that matters and is not known."""
        if self._recompute is None and not self._row:
            self._row = of_a_row(policy, cond)

    def recompute(self, rows: int) -> bool:
        """Whether the graphs of so many steps, of all chains, are too many to hold."""
        return rows * self._row > HELD if self._recompute is None else self._recompute

    def held(self, policy: Policy, cond: Cond, once: bool) -> "Held | None":
        """The policy, drawing chains whose graphs are held, if the only loss of a round is theirs."""
        return Held(policy) if once and not self.recompute(batch_size(cond) * policy.steps) else None


class Held(Wrapped):
    """A policy whose draws keep their graphs, so that log p of what it drew needs no second pass."""

    def __init__(self, policy: Policy):
        super().__init__(policy)
        self._parts: list[list[Transition]] = []  # the decisions of each part of the batch, x_T first
        self._sizes: list[int] = []

    def initial(self, cond: Cond) -> Transition:
        with torch.enable_grad():
            self._parts.append([self.base.initial(cond)])
        self._sizes.append(batch_size(cond))
        return self._parts[-1][-1]

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        with torch.enable_grad():
            self._parts[-1].append(self.base(x, t, cond))
        return self._parts[-1][-1]

    def log_prob(self, seen: Experience) -> PerStep:
        """log p of every decision of the chains that it drew, with gradients."""
        ends, found = accumulate(self._sizes), []
        rows = [torch.arange(end - size, end) for end, size in zip(ends, self._sizes, strict=True)]
        for steps, x_next in zip(zip(*self._parts, strict=True), seen.path.states, strict=True):
            step = steps[0] if len(steps) == 1 else join(list(zip(rows, steps, strict=True)))
            if seen.valid is not None and len(seen.valid) < sum(self._sizes):
                step = step.rows(seen.valid)
            found.append(step.log_prob(x_next))
        return torch.stack(found)


class Graphed:
    """What algorithms with the setting `recompute` share; it stands before `Algorithm` among their bases."""

    recompute: bool | None

    @cached_property
    def graphs(self) -> Graphs:
        """What decides by the setting."""
        return Graphs(self.recompute)

    def setup(self, policy: Policy, cond: Cond) -> None:
        self.graphs.measure(policy, cond)
