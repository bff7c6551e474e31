"""The numbers of a run that its verdict is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from difftilt.evaluation.estimate import Change, Estimate
from difftilt.evaluation.optimum import Optimum


@dataclass(frozen=True)
class Outcome:
    """What the rules read. None stands for what was not measured.

    Args:
        reward: The reward that was trained on.
        kl: KL(p || pretrained) of the tuned chain, in nats.
        gold: Scores that training never saw, larger meaning better.
        is_proxy: Whether the reward stands for them, so that they are expected to rise with it.
        diversity: Any positive measure of how different the samples are.
        family: Share of the largest family among the samples that belong to any.
        family_name: What it is now, as in `molecules of scaffold c1ccccc1`.
        rounds: J of every round, in order.
        optimum: J*, which no policy exceeds.
        samples: How many samples of the tuned model were scored.
        dropped: Samples whose reward failed, and that were left out.
        penalised: Samples whose reward failed, and that got the stated penalty.
        ess: Effective share of the samples behind each round's weights, in (0, 1].
        warnings: What the run itself has to say, in sentences.
    """

    alpha: float | None = None
    reward: Change | None = None
    kl: Estimate | None = None
    objective: Change | None = None
    gold: Mapping[str, Change] = field(default_factory=dict)
    is_proxy: bool = True
    diversity: Change | None = None
    family: Change | None = None
    family_name: str = ""
    rounds: Sequence[Estimate] = ()
    optimum: Optimum | None = None
    target_kl: float | None = None
    samples: int | None = None
    dropped: int = 0
    penalised: int = 0
    ess: Sequence[float] = ()
    warnings: Sequence[str] = ()
    finished: bool = True

    @property
    def way(self) -> Estimate | None:
        """The share of the way from J before to J*, in (0, 1]; None unless J rose clearly and J* is known."""
        if not self.finished or self.objective is None or self.optimum is None:
            return None
        share = self.optimum.way(self.objective)
        if share is None or self.objective.direction <= 0 or self.optimum.exceeded_by(self.objective.after):
            return None
        return Estimate(min(share.value, 1.0), share.se)
