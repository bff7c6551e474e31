"""Direct reward backpropagation: the gradient of the reward, through the chain that made the sample.

DRaFT (Clark et al., 2024, https://arxiv.org/abs/2309.17400) and AlignProp (Prabhudesai et al., 2023,
https://arxiv.org/abs/2310.03739).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from difftilt.algorithms.graphs import Graphed
from difftilt.conditions import deal, take
from difftilt.objective import Algorithm, Loss, Objective, outcome
from difftilt.policy import Policy, law, level, reversing
from difftilt.settings import Count
from difftilt.shapes import Cond, Index, Next, PerSample, Some, State


@dataclass(eq=False)
class Backprop(Graphed, Algorithm):
    """Each gradient step samples fresh chains, reparameterised, and descends

        L = -E r(x_0) + alpha E sum_t KL(p(. | x_t) || p_pre(. | x_t)),

    whose gradient reaches the weights through the reward, the states x_t, and each KL. `through` says how
    many of the last transitions the gradient passes, k; before that x_t is taken as given, but its own KL
    still counts. Less than `full` is biased, and cheaper to keep stable.

    Args:
        through: `full`, all of them and a tuned distribution of x_T; `last`, k = `last` (DRaFT-K); `random`,
            k uniform in 1, ..., T, drawn once for each chain (AlignProp); `low_variance`, k = 1 with `draws`
            more pairs (x_1, x_0), made by noising x_0 again (DRaFT-LV).
        last: K of `last`, at least 1.
        draws: Pairs of `low_variance`, at least 1. Each costs a reward call.
        minibatches: Gradient steps per round, each on its own part of the conditions, at least 1.
        recompute: Keep the states alone, and compute each step again in the backward pass: memory grows with
            T by the states only. By default where the graphs of all steps would take more than a GiB.
    """

    filtered: ClassVar[bool] = False
    through: Literal["full", "last", "random", "low_variance"] = "full"
    last: Count = 1
    draws: Count = 2
    minibatches: Count = 8
    recompute: bool | None = None

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        self.graphs.measure(policy, cond)
        for part in deal(cond, self.minibatches):
            x, kl = self._chains(policy, objective.reference, part)
            reward, valid = objective.score(policy.decode(x, part), part)
            gain = reward
            if self.through == "low_variance":
                gain = self._average(policy, objective, x.detach()[valid], take(part, valid), reward)
            kl = kl[valid]
            loss = objective.alpha * kl.mean() - gain.mean()
            yield Loss(loss, outcome(reward.detach(), kl.detach(), objective.alpha))

    def _chains(self, policy: Policy, reference: Policy, cond: Cond) -> tuple[State, PerSample]:
        """x_0 and the KL of its path, in nats."""

        def step(x: State, t: int) -> tuple[Next, PerSample]:
            time = level(x, t)
            drawn = law(policy, x, time, cond)
            return drawn.rsample(), drawn.kl(law(reference, x, time, cond))

        x = torch.zeros_like(policy.initial(cond).sample())
        recompute = self.graphs.recompute(2 * len(x) * policy.steps)  # the reference's graph, too
        passed = self._passed(policy.steps, x)
        kl = torch.zeros((), device=x.device)
        for t in range(policy.steps + 1, 0, -1):
            drawn = checkpoint(step, x, t, use_reentrant=False) if recompute else step(x, t)
            x, cost = cast(tuple[Tensor, Tensor], drawn)
            keep = (t <= passed)[(...,) + (None,) * (x.ndim - 1)]
            x, kl = torch.where(keep, x, x.detach()), kl + cost
        return x, kl

    def _passed(self, steps: int, x: State) -> Index:
        """How many of the last decisions each chain's gradient passes; T + 1 with that of x_T."""
        if self.through == "random":
            return torch.randint(1, steps + 1, (len(x),), device=x.device)
        passed = {"full": steps + 1, "last": self.last, "low_variance": 1}
        return level(x, passed[self.through])

    def _average(self, policy: Policy, objective: Objective, x_0: State, cond: Cond, reward: Some) -> Some:
        """The reward of x_0 and of its siblings, which were drawn from x_1 made by noising x_0."""
        chain = reversing(policy, "through='low_variance' needs", "use 'last'")
        rewards, t = [reward], level(x_0, 1)
        for _ in range(self.draws):
            x = chain(chain.corrupt(x_0, t), t, cond).rsample()
            rewards.append(objective.score(chain.decode(x, cond), cond)[0])
        return torch.cat(rewards)
