"""What is known exactly of a policy on a landscape, and of the best there can be."""

import dataclasses

from difftilt.data.landscape import Landscape
from difftilt.domains.landscape.model import best_seen
from difftilt.exact import landscape as exact
from difftilt.experiment.job import View
from difftilt.objective import Objective
from difftilt.policy import Policy
from difftilt.shapes import Points, Scalar

NOTE = (
    "Computed from the distribution of all {count} sequences, without sampling. p_r is what is asked for, the"
    " pretrained distribution tilted by exp(reward / alpha); the highest score among the {seen} sequences"
    " seen in pretraining is {best:.4f}. {about}"
)


class Truth:
    """What is known exactly of policies on a landscape, by name, beside the optimum."""

    def __init__(self, objective: Objective, table: Landscape):
        self.objective, self.table = objective, table
        self.better = table.score > best_seen(table)
        self._solved: tuple[float, exact.Solution] | None = None

    def of(self, policy: Policy) -> dict[str, float]:
        found, solved = exact.evaluate(self.objective, policy, self.table.score), self.solved()
        return self._row(found.reward, found.kl, found.objective, found.law, solved)

    def of_optimum(self) -> dict[str, float]:
        solved = self.solved()
        return self._row(solved.reward, solved.kl, solved.optimum, solved.law, solved)

    def solved(self) -> exact.Solution:
        """The optimum at the objective's present alpha."""
        alpha = self.objective.alpha
        if self._solved is None or self._solved[0] != alpha:
            self._solved = alpha, exact.solve(self.objective, self.table.score)
        return self._solved[1]

    def beside(self, view: View) -> View:
        """The view with all that is known exactly."""
        return dataclasses.replace(view, exact=self.of, optimum=self.of_optimum, exact_note=self.note())

    def note(self) -> str:
        return NOTE.format(
            count=f"{len(self.table.score):,}",
            seen=f"{len(self.table.lower_half()):,}",
            best=best_seen(self.table),
            about=self.table.note,
        )

    def _row(
        self, reward: Scalar, cost: Scalar, objective: Scalar, law: Points, solved: exact.Solution
    ) -> dict[str, float]:
        return {
            "reward": reward.item(),
            "path KL to the pretrained model, nats": cost.item(),
            "J": objective.item(),
            "gap (J* - J) / alpha, nats": (solved.optimum - objective).item() / self.objective.alpha,
            "KL(policy || p_r), nats": exact.kl(law, solved.law).item(),
            "KL(p_r || policy), nats": exact.kl(solved.law, law).item(),
            "share better than any sequence seen in pretraining": law[self.better].sum().item(),
        }
