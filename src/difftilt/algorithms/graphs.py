"""Whether the graphs of all steps are held, or each is computed again in the backward pass."""

from functools import cached_property

from difftilt.policy import Policy
from difftilt.samplers.memory import MIB, of_a_row
from difftilt.shapes import Cond

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


class Graphed:
    """What algorithms with the setting `recompute` share; it stands before `Algorithm` among their bases."""

    recompute: bool | None

    @cached_property
    def graphs(self) -> Graphs:
        """What decides by the setting."""
        return Graphs(self.recompute)

    def setup(self, policy: Policy, cond: Cond) -> None:
        self.graphs.measure(policy, cond)
