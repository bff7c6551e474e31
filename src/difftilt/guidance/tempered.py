"""A policy that explores: every distribution of another one, tempered."""

from difftilt.policy import Policy, Wrapped
from difftilt.shapes import Cond, State, Step
from difftilt.transition import Transition


class Tempered(Wrapped):
    """Draws from the distributions p^(1 / temperature) of another policy: behaviour for off-policy
    objectives.

    Args:
        policy: The policy whose weights it uses.
        temperature: 1 is the policy itself; a Gaussian's variance is multiplied by it.
    """

    def __init__(self, policy: Policy, temperature: float):
        super().__init__(policy)
        self.temperature = temperature

    def initial(self, cond: Cond) -> Transition:
        return self.base.initial(cond).tempered(self.temperature)

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        return self.base(x, t, cond).tempered(self.temperature)
