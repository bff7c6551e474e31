"""A policy that remembers its last answer, for a guided chain and its base, which ask at one state."""

import torch

from difftilt.policy import Policy
from difftilt.shapes import Cond, Sample, State, Step
from difftilt.transition import Transition


class Once(Policy):
    """Passes a state through the network once, though it is asked about it several times in a row.

    Args:
        policy: The policy whose weights it uses; they must not move between two questions.
    """

    def __init__(self, policy: Policy):
        super().__init__()
        self.network, self.steps, self.symbols = policy.network, policy.steps, policy.symbols
        self._policy = (policy,)  # in a tuple: its weights are not this module's
        self._last: tuple[State, Step, Cond, bool, Transition] | None = None

    def initial(self, cond: Cond) -> Transition:
        return self._policy[0].initial(cond)

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        asked = (x, t, cond, torch.is_grad_enabled())
        if self._last is None or any(a is not b for a, b in zip(asked, self._last[:4], strict=True)):
            self._last = (*asked, self._policy[0](x, t, cond))
        return self._last[4]

    def decode(self, x: State) -> Sample:
        return self._policy[0].decode(x)
