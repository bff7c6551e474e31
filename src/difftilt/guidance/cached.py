"""A policy that remembers its last answer, for a guided chain and its base, which ask at one state."""

import torch

from difftilt.policy import Policy, Wrapped
from difftilt.shapes import Cond, State, Step
from difftilt.transition import Transition


class Cached(Wrapped):
    """Passes a state through the network once, though it is asked about it several times in a row.

    Args:
        policy: The policy whose weights it uses; they must not move between two questions.
    """

    def __init__(self, policy: Policy):
        super().__init__(policy)
        self._last: tuple[State, Step, Cond, bool, Transition] | None = None

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        asked = (x, t, cond, torch.is_grad_enabled())
        if self._last is None or any(a is not b for a, b in zip(asked, self._last[:4], strict=True)):
            self._last = (*asked, self.base(x, t, cond))
        return self._last[4]
