"""Soft values without training, from the clean sample that the network expects (Chung et al., 2023)."""

from difftilt.objective import Objective, hard_wired
from difftilt.policy import Diffusion
from difftilt.shapes import Cond, PerSample, State, Step
from difftilt.transition import tokens


class PosteriorMean:
    """v_t(x_t) = r(E[x_0 | x_t]), one network pass and one reward call; DPS's value, by Tweedie's formula.

    It ignores how uncertain x_0 still is, and overshoots where r is curved. Of tokens it takes the likeliest
    of each position, for rewards know no mixtures of them.

    Args:
        objective: Its reference, a chain that reverses a noising process, expects x_0; its reward scores it.
    """

    def __init__(self, objective: Objective):
        if not isinstance(objective.reference, Diffusion):
            raise ValueError(
                "the posterior mean needs a chain that reverses a noising process, which a"
                f" {type(objective.reference).__name__} is not; learn a value instead"
            )
        self._objective, self._reference = objective, objective.reference

    def __call__(self, x: State, t: Step, cond: Cond) -> PerSample:
        return hard_wired(self._objective, self._above, x, t, cond)

    def _above(self, x: State, t: Step, cond: Cond) -> PerSample:
        clean = self._reference.clean(x, t, cond)
        clean = tokens(clean) if self._reference.symbols else clean
        return self._objective.reward(self._reference.decode(clean), cond)
