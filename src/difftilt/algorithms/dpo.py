"""Direct preference optimization (Rafailov et al., 2023) of a diffusion chain, on pairs of samples.

https://arxiv.org/abs/2305.18290; Diffusion-DPO (Wallace et al., 2024), https://arxiv.org/abs/2311.12908.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from difftilt.conditions import batch_size, context, repeat, shuffled, take
from difftilt.objective import Algorithm, Experience, Loss, Objective
from difftilt.policy import Diffusion, Policy, path_log_prob, reversing
from difftilt.settings import Count
from difftilt.shapes import Cond, Index, PerLevel, PerSample, Scalar, Some

PARTNERS = 16  # most samples that each is compared with


@dataclass(eq=False)
class DPO(Algorithm):
    """Samples chains, asks of every two of one context which is preferred, and descends the logistic loss

        L = -E log sigmoid(h_w - h_l),   h = sum_t log p(x_{t-1} | x_t) / p_pre(x_{t-1} | x_t),

    where w is preferred to l with the probability of Bradley and Terry (1952), sigmoid((r_w - r_l) / alpha).
    Then the reward is alpha times what a preference model would say, alpha is the paper's beta, and the
    minimum is p_r, whoever drew the chains. Where all contexts of a batch differ, every second of them is
    sampled twice, and in the next round the others.

    Args:
        form: `trajectory` as above. `denoising` is Diffusion-DPO: samples are noised again to one t, and
            h = T (KL(q || p_pre) - KL(q || p)) for q(x_{t-1} | x_t, x_0), with the mean over t outside of the
            logarithm. That bounds the loss, and its minimum is near p_r, not at it.
        labels: `expected`, the mean over both answers; `drawn`, one of them, as people give.
        levels: Noise levels of each minibatch in `denoising`, at least 1.
        epochs: Passes over the chains of a round, at least 1.
        minibatches: Gradient steps per pass, at least 1; pairs are within a minibatch.
    """

    form: Literal["trajectory", "denoising"] = "trajectory"
    labels: Literal["expected", "drawn"] = "expected"
    levels: Count = 8
    epochs: Count = 1
    minibatches: Count = 4

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        seen = objective.sample(policy, self.arrange(cond, objective.reward.round))
        ids = context(seen.path.cond).to(seen.reward.device)
        logit = seen.reward.double() / seen.alpha
        for _ in range(self.epochs):
            for index in _dealt(ids, self.minibatches):
                gain = self._gain(policy, objective.reference, seen, index)
                prefers = preferences(logit[index], ids[index], drawn=self.labels == "drawn")
                yield Loss(preference_loss(gain, prefers), seen.stats())

    def arrange(self, cond: Cond, round: int) -> Cond:
        return _twice(cond, round)

    def _gain(self, policy: Policy, reference: Policy, seen: Experience, index: Index) -> PerLevel:
        """h of some chains, one row per estimate of it."""
        path = seen.path.chains(index)
        if self.form == "trajectory":
            return (path_log_prob(policy, path) - seen.log_reference[:, index]).sum(0)[None]
        need, instead = "form 'denoising' needs", "use form 'trajectory'"
        chains: list[Diffusion] = [reversing(p, need, instead) for p in (policy, reference)]
        x_0, gains = path.states[-1], []
        for _ in range(self.levels):
            t = torch.randint(1, policy.steps + 1, (1,), device=x_0.device).expand(len(x_0))
            x = chains[0].corrupt(x_0, t)
            with torch.no_grad():
                before = chains[1].loss_at(x_0, x, t, path.cond)
            gains.append(policy.steps * (before - chains[0].loss_at(x_0, x, t, path.cond)))
        return torch.stack(gains)


def preferences(logit: PerSample, ids: Index, *, drawn: bool = False) -> tuple[Index, Index, Some]:
    """Pairs of samples of one context, and the probability that the first is preferred.

    Args:
        logit: The reward over alpha.
        ids: Context of each sample, which is paired with the next `PARTNERS` of its own.
        drawn: Draw an answer, 0 or 1, in the place of its probability.
    """
    order = ids.argsort(stable=True)
    ends = [(order[:-far], order[far:]) for far in range(1, min(PARTNERS, len(ids) - 1) + 1)]
    first, second = (torch.cat([pair[k] for pair in ends] or [order[:0]]) for k in (0, 1))
    alike = ids[first] == ids[second]
    first, second = first[alike], second[alike]
    chance = (logit[first] - logit[second]).sigmoid()
    return first, second, torch.bernoulli(chance) if drawn else chance


def preference_loss(gain: PerLevel, prefers: tuple[Index, Index, Some]) -> Scalar:
    """-log sigmoid(h_w - h_l), averaged over pairs and rows; 0 without a pair.

    Args:
        gain: h of each sample, one row per estimate.
    """
    first, second, chance = prefers
    if not len(first):
        return 0 * gain.sum()
    margin = gain.double()[:, first] - gain.double()[:, second]
    return F.binary_cross_entropy_with_logits(margin, chance.double().expand_as(margin))


def _twice(cond: Cond, round: int) -> Cond:
    """The conditions; where all differ, every second of them twice, and in the next round the others."""
    batch = batch_size(cond)
    if batch < 2:
        raise ValueError(f"dpo compares samples of one context, but got a batch of {batch}; enlarge it")
    if int(context(cond).max()) + 1 < batch:
        return cond
    return repeat(take(cond, (torch.arange(batch // 2) * 2 + round) % batch), 2)


def _dealt(ids: Index, parts: int) -> Iterator[Index]:
    """Rows in minibatches, such that each comes with another one of its context, if there is one."""
    alike = [(ids == number).nonzero()[:, 0] for number in ids.unique()]
    couples = [two for rows in alike for two in rows[torch.randperm(len(rows), device=ids.device)].split(2)]
    for index in shuffled(len(couples), parts, torch.device("cpu"), again=True):
        yield torch.cat([couples[k] for k in index.tolist()])
