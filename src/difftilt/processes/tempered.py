"""A policy that explores: every law of another one, tempered."""

from difftilt.policy import Policy
from difftilt.shapes import Cond, Sample, State, Step
from difftilt.transition import Transition


class Tempered(Policy):
    """Draws from the laws p^(1 / temperature) of another policy: behaviour for off-policy objectives.

    Args:
        policy: The policy whose weights it uses.
        temperature: 1 is the policy itself; a Gaussian's variance is multiplied by it.
    """

    def __init__(self, policy: Policy, temperature: float):
        super().__init__()
        self.network, self.steps, self.symbols = policy.network, policy.steps, policy.symbols
        self._policy = (policy,)  # in a tuple: its weights are not this module's
        self.temperature = temperature

    def initial(self, cond: Cond) -> Transition:
        return self._policy[0].initial(cond).tempered(self.temperature)

    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        return self._policy[0](x, t, cond).tempered(self.temperature)

    def decode(self, x: State) -> Sample:
        return self._policy[0].decode(x)
