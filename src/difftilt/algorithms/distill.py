"""Distillation: what a sampler draws, imitated by the weights, so that later samples cost one plain chain.

Reward-weighted likelihood (Peters and Schaal, 2007) on the samples of guidance, SMC or SVDD; VIDD (Su et al.,
2025, https://arxiv.org/abs/2507.00445) distils such roll-ins step by step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from difftilt.algorithms import advantages
from difftilt.algorithms.minibatches import parts
from difftilt.conditions import batch_size, deal_rows, some_rows, take
from difftilt.data.across import context, gathered
from difftilt.objective import Algorithm, Loss, Objective, Value, outcome
from difftilt.policy import Policy, decide, reversing
from difftilt.samplers.choices import AnySampler
from difftilt.samplers.particles import effective_share
from difftilt.samplers.result import Steered
from difftilt.samplers.smc import SMC
from difftilt.settings import Count
from difftilt.shapes import Cond, Index, PerSample
from difftilt.values.tweedie import PosteriorMean


@dataclass(eq=False)
class Distill(Algorithm):
    """Draws from a sampler that starts from the reference, and descends

        L = -E sum_t w log p(x_{t-1} | x_t),   w ~ the weight of the population that drew x_0,

    of mean Z before it is normalised: weighted so, samples are fair ones of p_r even of few particles, and
    the minimum over all policies is p*. Weights have mean 1 within each context. A sampler without an
    estimate of Z is imitated as it is. `reward`, `kl_nats` and `objective` are those of the policy, by some
    samples of its own; what begins with `sampler_` is the sampler's.

    Args:
        sampler: Who is imitated. It starts from as many of a round's conditions, drawn at random, as give
            one sample per condition of the round.
        form: The pairs that are imitated. `trajectory`: those of the sampler's chains. `denoising`: x_0 is
            noised again and its posterior imitated, which is right where the chain reverses the noising
            process.
        weighted: Weigh samples as above; else the sampler's own distribution is imitated, whatever it is.
        epochs: Passes over the rows of a round, at least 1.
        minibatches: Gradient steps per pass over shuffled (t, sample) rows, at least 1.
        judged: Samples of the policy per round that its numbers are taken from, at least 1.
        value: Soft values v_t(x_t) for the sampler; by default r(E[x_0 | x_t]) of the reference.
    """

    filtered: ClassVar[bool] = False
    sampler: AnySampler = field(default_factory=SMC)
    form: Literal["trajectory", "denoising"] = "trajectory"
    weighted: bool = True
    epochs: Count = 1
    minibatches: Count = 4
    judged: Count = 64
    value: Value | None = None

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        stats = objective.sample(policy, _some(cond, self.judged)).stats()
        asked = _some(cond, max(1, batch_size(cond) // self.sampler.kept))
        value = self.value or PosteriorMean(objective)
        steered = self.sampler.draw(objective, value, asked, history=self.form == "trajectory")
        weight = self._weights(steered)
        stats |= _numbers(steered) | {"ess": effective_share(gathered(weight).log()[None])[0]}
        samples, decisions = len(weight), policy.steps + 1
        for _ in range(self.epochs):
            for minibatch in deal_rows(decisions, samples, self.minibatches, device=weight.device):
                for index, share in parts(policy, minibatch, steered.x_0):
                    cost = self._cost(policy, steered, index)
                    yield Loss((weight[index % samples] * cost).mean() * decisions, stats, share)

    def _weights(self, steered: Steered) -> PerSample:
        """One weight per sample: that of its population, of mean 1 in each context."""
        log_w = steered.log_z[steered.population]
        if not self.weighted or bool(log_w.isnan().all()):
            return torch.ones_like(log_w)
        return advantages.group_softmax(log_w, context(steered.cond).to(log_w.device))

    def _cost(self, policy: Policy, steered: Steered, index: Index) -> PerSample:
        """The cost of rows of the (decision, sample) table."""
        samples = len(steered.x_0)
        step, column = index // samples, index % samples
        if steered.path is None:
            t = policy.steps + 1 - step
            chain = reversing(policy, "form 'denoising' needs", "use form 'trajectory'")
            return chain.loss(steered.x_0[column], t, take(steered.cond, column))
        if (taken := len(steered.path.states) - 1) != policy.steps:
            raise ValueError(
                f"the sampler's chains take {taken} steps and the policy's {policy.steps}, so they cannot be"
                " imitated step by step; use form 'denoising'"
            )
        rows = steered.path.transitions(index)
        return -decide(policy, rows).log_prob(rows.x_next)


def _some(cond: Cond, count: int) -> Cond:
    """That many of the conditions at most, drawn at random."""
    return take(cond, some_rows(batch_size(cond), count))


def _numbers(steered: Steered) -> dict[str, Tensor]:
    """The sampler's own reward, KL, J and share of effective particles."""
    numbers = outcome(steered.reward, steered.kl, steered.alpha) | {"ess": steered.ess}
    return {f"sampler_{name}": x for name, x in numbers.items() if not name.endswith("_se")}
