"""Group relative policy optimization (Shao et al., 2024) of a diffusion chain.

https://arxiv.org/abs/2402.03300; on flows, Flow-GRPO (Liu et al., 2025), https://arxiv.org/abs/2505.05470;
DanceGRPO (Xue et al., 2025), https://arxiv.org/abs/2505.07818; MixGRPO (Li et al., 2025),
https://arxiv.org/abs/2507.21802.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import annotated_types as at
import torch

from difftilt.algorithms import advantages
from difftilt.algorithms.minibatches import minibatches
from difftilt.conditions import batch_size, repeat, take
from difftilt.data.across import context, gathered
from difftilt.guidance.window import Window, without_noise
from difftilt.objective import Algorithm, Loss, Objective, to_go
from difftilt.policy import Policy, check_ratio, decide
from difftilt.settings import Count, Natural, Share
from difftilt.shapes import Cond, Counts


@dataclass(eq=False)
class GRPO(Algorithm):
    """Each context is sampled `group_size` times, and each sample is compared with its own group:

        L   = -E sum_t min(w_t A_t, clip(w_t, 1 - clip, 1 + clip) A_t) + alpha sum_t KL_t / deviation,
        A_t = (G_t - mean of the group) / deviation of the group's rewards,   G_t = r - alpha KL_{later}.

    Deviations from the paper, which keep the maximum of J where it is: the KL is the closed form in nats
    and is divided by the same deviation, so that alpha keeps its meaning; and the KL that a decision causes
    later counts in its advantage, to which the paper's penalty is blind. A group's deviation counts as a
    quarter of the usual one at least, so that a group of equal rewards keeps its KL and outweighs no other.

    Args:
        group_size: Samples per context, at least 2. A batch that asks for each context a multiple of
            `group_size` times is sampled as it is, in any order. Of n contexts that all differ, every
            `group_size`-th is kept and repeated, and each round begins with the next; so n samples are drawn.
        clip: Range of the ratio, in (0, 1).
        clip_per_dim: Clip the ratio per dimension instead, w^(1 / D).
        epochs: Passes over the rows of a round, at least 1.
        minibatches: Gradient steps per pass over shuffled (t, sample) rows, at least 1.
        share: Of these rows that are trained on in a pass, in (0, 1]; they are drawn at random, as in
            DanceGRPO, and leave the expected gradient as it is.
        shared_noise: Let all samples of a context begin with one x_T, as in DanceGRPO. Not with a
            distribution of x_T that is tuned.
        window: Draw noise at so many consecutive steps only, and train on these; the others are those of the
            probability-flow ODE. Samples are compared for what these steps did, but the optimum is that of
            such chains and not p_r; the KL that a round logs is that of the window.
        slide: Rounds after which the window moves by a step, from noise to data and again, as in MixGRPO;
            with 0 it lies anywhere at random in each round, as in Flow-GRPO-Fast.
    """

    group_size: Annotated[int, at.Ge(2)] = 16
    clip: Annotated[float, at.Interval(gt=0, lt=1)] = 0.2
    clip_per_dim: bool = False
    epochs: Count = 2
    minibatches: Count = 4
    share: Share = 1.0
    shared_noise: bool = False
    window: Count | None = None
    slide: Natural = 0

    def __post_init__(self):
        super().__post_init__()
        self.register_buffer("checked", torch.tensor(False))

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        cond = self.arrange(cond, objective.reward.round)
        policy, objective = self._noisy(policy, objective, cond)
        seen = objective.sample(policy, cond, keep=True)
        path, alpha = seen.path, objective.alpha
        if not self.checked:
            check_ratio(policy, path)
            self.checked.fill_(True)
        ids = context(path.cond)
        spread = advantages.group_scale(seen.reward, ids, alpha).expand_as(seen.kl)
        returns = seen.reward - alpha * (to_go(seen.kl) - seen.kl)
        advantage = (advantages.group(returns, ids) / spread).flatten()
        dimensions = path.states[0, 0].numel() if self.clip_per_dim else 1

        for _ in range(self.epochs):
            for index, share in minibatches(policy, path, self.minibatches, self.share):
                rows = path.transitions(index)
                step = decide(policy, rows)
                log_w = step.log_prob(rows.x_next) - path.log_prob.flatten()[index]
                gain = advantages.clipped_surrogate(log_w, advantage[index], self.clip, dimensions)
                loss = alpha * step.kl(seen.base(index)) / spread.flatten()[index] - gain
                clipped = advantages.clipped(log_w, self.clip, dimensions)
                yield Loss(loss.mean() * len(path.log_prob), seen.stats() | {"clipped": clipped}, share)

    def _noisy(self, policy: Policy, objective: Objective, cond: Cond) -> tuple[Policy, Objective]:
        """The chain as it is sampled, and its problem: of the steps that draw noise, from a given start."""
        if self.window is None and not self.shared_noise:
            return policy, objective
        start = policy.initial(cond)
        x = start.sample()
        if start.log_prob(x).requires_grad:
            raise ValueError(
                "a window and shared noise begin with a given x_T, but the distribution of x_T is tuned here;"
                " leave either out"
            )
        steps, round = policy.steps, objective.reward.round
        count = min(self.window or steps, steps)
        places = steps - count + 1  # that the window can be in
        moved = round // self.slide % places if self.slide else int(torch.randint(places, ()))
        with torch.no_grad():
            if self.shared_noise:
                ids = context(cond)
                x = x[[int((ids == number).nonzero()[0]) for number in ids]]
            x = without_noise(policy, x, steps, steps - moved, cond)
        chain, reference = (Window(p, x, steps - moved, count) for p in (policy, objective.reference))
        return chain, Objective(objective.reward, reference, objective.alpha, objective.diversity)

    def arrange(self, cond: Cond, round: int) -> Cond:
        size, batch = self.group_size, batch_size(cond)
        members = torch.bincount(gathered(context(cond)))
        if 1 < len(members) < members.sum():
            self._check_members(cond, members)
            return cond
        if len(members) == 1 and members[0] % size == 0:
            return cond
        if batch < size:
            raise ValueError(
                f"a batch of {batch} holds no group of {size}; enlarge the batch or lower group_size"
            )
        rows = (torch.arange(batch // size) * size + round) % batch
        return repeat(take(cond, rows), size)

    def _check_members(self, cond: Cond, members: Counts) -> None:
        """Raises ValueError if some context is not asked for a multiple of `group_size` times."""
        ragged = (members % self.group_size).nonzero()[:, 0].tolist()
        if ragged:
            ids = context(cond).tolist()
            row = next((row for row, number in enumerate(ids) if number in ragged), 0)  # else it is another's
            asked = {name: value[row] for name, value in take(cond, torch.arange(row + 1)).items()}
            raise ValueError(
                f"got context {str(asked)[:200]} {members[ids[row]]} times, which makes no groups of"
                f" {self.group_size}; repeat each context a multiple of that, change group_size, or give"
                " contexts that all differ"
            )
