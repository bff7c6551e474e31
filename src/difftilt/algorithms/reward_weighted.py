"""Reward-weighted maximum likelihood: imitate samples, the better the more.

RWR (Peters and Schaal, 2007), RAFT (Dong et al., 2023, https://arxiv.org/abs/2304.06767), and the
value-ratio form of VIDD (Su et al., 2025, https://arxiv.org/abs/2507.00445).
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from difftilt.algorithms import advantages
from difftilt.algorithms.minibatches import minibatches
from difftilt.data.across import context, gathered
from difftilt.objective import Algorithm, Experience, Loss, Objective, Value
from difftilt.policy import Policy, decide, level, reversing
from difftilt.samplers.particles import effective_share
from difftilt.settings import Count, Positive, Share
from difftilt.shapes import Cond, Index, PerSample, PerStep, Scalar
from difftilt.values.tweedie import PosteriorMean

SOFTER, SOFTENINGS = 0.8, 50  # factor of the weights' logarithms, and how often it is applied
HISTORY = 8192  # rewards behind the threshold of `percentile`


@dataclass(eq=False)
class RewardWeighted(Algorithm):
    """Samples chains from the present policy p_old, weighs them, and descends

        L = -E sum_t w log p(x_{t-1} | x_t),   w ~ exp(r(x_0) / alpha) P_pre(path) / P_old(path),

    whose minimum over all policies is p*: the forward KL(p* || p), which covers modes. Weights have mean 1
    within each context, or good contexts would crowd out the others. Among policies that keep the
    reference's standard deviations the minimum differs slightly from that of J; the difference shrinks as
    steps are added.

    Args:
        form: The pairs that are imitated. `trajectory`: those of the chain. `denoising`: x_0 is noised again
            and its posterior imitated, KL(q(x_{t-1} | x_t, x_0) || p), which is right where the chain
            reverses the noising process. `value`: those of the chain, each with its own weight
            exp((v(x_{t-1}) - v(x_t)) / alpha) p_pre / p_old, of far less variance.
        target: `fixed` as above. `iterated` leaves the ratio of paths out, so that round k aims at
            p_pre exp(k r / alpha): alpha falls as 1 / k.
        select: `all` samples by weight; the `top` share of each context, equally (RAFT); or those above that
            `percentile` of recent rewards. The last two have no alpha, and p_r is not their target.
        keep: The share that `top` and `percentile` keep, in (0, 1].
        temperature: Weights are w^(1 / temperature), above 0; above 1 there is less variance, and bias.
        effective: Effective share of the samples that weights must leave, in (0, 1]: while they leave less,
            their logarithms are made smaller, so that a far target is neared in rounds. There is no bias,
            as near the target all weights are alike.
        epochs: Passes over the rows of a round, at least 1.
        minibatches: Gradient steps per pass over shuffled (t, sample) rows, at least 1.
        value: Soft values v_t(x_t) for form `value`; by default r(E[x_0 | x_t]), the reward of the clean
            sample that the reference expects, which costs a reward call per step. Of tokens it is the
            likeliest of each position, never a mixture of them.
    """

    form: Literal["trajectory", "denoising", "value"] = "trajectory"
    target: Literal["fixed", "iterated"] = "fixed"
    select: Literal["all", "top", "percentile"] = "all"
    keep: Share = 0.1
    temperature: Positive = 1.0
    effective: Share = 0.1
    epochs: Count = 1
    minibatches: Count = 4
    value: Value | None = None

    def __post_init__(self):
        super().__post_init__()
        self.history: deque[float] = deque(maxlen=HISTORY)

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        seen = objective.sample(policy, cond)
        ids = context(seen.path.cond).to(seen.reward.device)
        weight, ess = self._weights(seen, objective, ids)
        for _ in range(self.epochs):
            for index, share in minibatches(policy, seen.path, self.minibatches):
                cost = self._cost(policy, seen, index)
                loss = (weight.flatten()[index] * cost).mean() * len(seen.kl)
                yield Loss(loss, seen.stats() | {"ess": ess}, share)

    def _weights(self, seen: Experience, objective: Objective, ids: Index) -> tuple[PerStep, Scalar]:
        """One weight per decision, of mean 1 in each context, and the effective share before they are soft.

        Where a chain has one weight, it is the same at every decision.
        """
        if self.select != "all" and self.form != "value":
            weight = plain = self._selected(seen.reward, ids)[None]
        else:
            log_w = self._log_weights(seen, objective) / self.temperature
            plain = torch.stack([advantages.group_softmax(row, ids) for row in log_w])
            weight = torch.stack([self._softened(*pair, ids) for pair in zip(log_w, plain, strict=True)])
        share = effective_share(gathered(plain.mean(0)).log()[None])[0]
        return weight.expand_as(seen.kl), share

    def _log_weights(self, seen: Experience, objective: Objective) -> PerStep:
        """Their logarithms, up to a constant; one row where all decisions of a chain have one."""
        if self.form != "value":
            passed = seen.log_ratio.sum(0) if self.target == "fixed" else 0
            return (seen.reward.double() / seen.alpha - passed)[None]
        value = self._values(seen, objective)
        before = torch.cat([torch.zeros_like(value[:1]), value[:-1]])
        log_w = (value - before) / seen.alpha - seen.log_ratio
        return log_w.where(log_w.isfinite(), -torch.inf)  # a state whose reward failed teaches nothing

    def _softened(self, log_w: PerSample, weight: PerSample, ids: Index) -> PerSample:
        """The given weights, or softer ones that leave enough samples, as far as that can be."""
        for _ in range(SOFTENINGS):
            if effective_share(gathered(weight).log()[None])[0] >= self.effective:
                break
            log_w = SOFTER * log_w
            weight = advantages.group_softmax(log_w, ids)
        return weight

    def _selected(self, reward: PerSample, ids: Index) -> PerSample:
        """The same for the best, 0 for the others; its mean is 1 in each context for `top`."""
        if self.select == "top":
            every, others = gathered(reward), gathered(ids)
            better = (every[None] > reward[:, None]) & (others[None] == ids[:, None])
            rank = better.sum(1) / torch.bincount(others)[ids]
            chosen = (rank < self.keep).double()
            return chosen / advantages.group_mean(chosen, ids)  # of equal rewards all are chosen
        self.history.extend(gathered(reward).tolist())
        threshold = torch.tensor(list(self.history)).quantile(1 - self.keep)
        return (reward >= threshold).double() / self.keep

    @torch.no_grad()
    def _values(self, seen: Experience, objective: Objective) -> PerStep:
        """v of the state that each decision drew; v_0 is the reward."""
        value, path, steps = self.value, seen.path, len(seen.path.states) - 1
        if value is None:
            reversing(objective.reference, "form 'value' needs", "use form 'trajectory'")
            value = PosteriorMean(objective)
        values = [value(x, level(x, steps - k), path.cond) for k, x in enumerate(path.states[:-1])]
        return torch.stack([*values, seen.reward]).double()

    def _cost(self, policy: Policy, seen: Experience, index: Index) -> PerSample:
        """-log p of the pairs that are imitated, up to a constant."""
        rows = seen.path.transitions(index)
        if self.form != "denoising":
            return -decide(policy, rows).log_prob(rows.x_next)
        x_0 = seen.path.states[-1, index % seen.kl.shape[1]]
        chain = reversing(policy, "form 'denoising' needs", "use form 'trajectory'")
        return chain.loss(x_0, rows.t, rows.cond)

    def get_extra_state(self) -> dict[str, Any]:
        return {"history": list(self.history)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.history = deque(state["history"], maxlen=HISTORY)
