"""DiffusionNFT (Zheng et al., 2025), https://arxiv.org/abs/2509.16117."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal, cast

import annotated_types as at
import torch

from difftilt.algorithms import advantages
from difftilt.conditions import shuffled, take
from difftilt.data.across import context, gathered
from difftilt.networks.average import follow
from difftilt.objective import Algorithm, Experience, Loss, Objective
from difftilt.policy import Diffusion, Policy, reversing
from difftilt.settings import Count, NonNegative, Positive
from difftilt.shapes import Cond, PerSample, Real, Scalar, State


@dataclass(eq=False)
class NFT(Algorithm):
    """Negative-aware fine-tuning, on the noising process alone: x_0 is sampled from `old`, a moving average
    of the policy, and noised again; its advantage A becomes the probability q of being a good example:

        q = 1 / 2 + clip(A / spread, -1, 1) / 2,     y = E_old[x_0 | x_t],     y' = E[x_0 | x_t],
        L = E q |y + b (y' - y) - x_0|^2 / b + E (1 - q) |y - b (y' - y) - x_0|^2 / b,

    divided by the mean error of its step t and weighted by the signal left in x_t, so that all steps count
    alike, also for networks that predict the noise. At y' = y its gradient is that
    of -E (2 q - 1) <x_0 - y, y'>: y' moves by the covariance of A and x_0 given x_t, as a tilt by A asks.

    Deviations from the paper, which keep p_r the target: A is r - alpha sum_t log(p / p_pre), constant at
    the optimum of a chain that reverses the noising process, where the paper has the reward alone and a
    `penalty`; `consistency` can denoise the policy's own samples, because a constant A fixes the distribution
    of x_0, but not the way there, which costs KL; and the paper divides each sample by its own error, which
    draws y' to a median of x_0 given x_t instead of its mean.

    Args:
        strength: b, above 0; the paper's beta. A smaller one takes longer steps.
        form: `negative` as above. `advantage` weighs the squared error by the advantage itself, as advantage-
            weighted matching does (Xue et al., 2025, https://arxiv.org/abs/2509.25050): its gradient is the
            same at y' = y, but nothing pulls back to y: give it a `consistency` of 1, with which every
            sample weighs 2 q. `strength` has no part.
        count_kl: Subtract the KL's cost from the reward; without it alpha has no part.
        consistency: Weight of |y' - x_0|^2, at least 0. Its own noise costs KL where a round has a hundred
            samples or fewer; without it the way to x_0 is free, and wanders off for good at a small alpha.
        penalty: The same for |y' - y_pre|^2.
        decay: Of the moving average that samples, in [0, 1); 0 samples from the policy itself.
        clip: Where advantages are clipped, in root mean squares, above 0.
        levels: Noise levels drawn for each sample in each pass, at least 1.
        epochs: Passes over the samples of a round, at least 1.
        minibatches: Gradient steps per pass, at least 1.
    """

    strength: Positive = 1.0
    form: Literal["negative", "advantage"] = "negative"
    count_kl: bool = True
    consistency: NonNegative = 0.3
    penalty: NonNegative = 0.0
    decay: Annotated[float, at.Interval(ge=0, lt=1)] = 0.5
    clip: Positive = 3.0
    levels: Count = 8
    epochs: Count = 1
    minibatches: Count = 4

    def __post_init__(self):
        super().__post_init__()
        self.old: Diffusion | None = None

    def setup(self, policy: Policy, cond: Cond) -> None:
        chain = reversing(policy, "nft needs", "use ppo for such a chain")
        if not policy.initial(cond).sample().is_floating_point():
            raise ValueError(
                f"nft regresses on real numbers, but the states of a {type(policy).__name__} are tokens; use"
                " ppo or reward-weighted for such a chain"
            )
        self.old = copy.deepcopy(chain).requires_grad_(False)

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        if self.old is None:
            raise ValueError("nft has no policy to sample from yet; call setup(policy, cond) before training")
        seen = objective.sample(self.old, cond)
        good = self._good(seen)
        for _ in range(self.epochs):
            for index in shuffled(len(good) * self.levels, self.minibatches, good.device, again=True):
                row = index % len(good)
                x_0, cond = seen.path.states[-1, row], take(seen.path.cond, row)
                loss = self._loss(policy, self.old, objective.reference, x_0, cond, good[row])
                yield Loss(loss, seen.stats())
        follow(self.old, policy, self.decay)

    def _good(self, seen: Experience) -> PerSample:
        """q of each sample."""
        gain = seen.reward.double()
        if self.count_kl:
            gain = gain - seen.alpha * seen.log_ratio.sum(0)
        advantage = advantages.group(gain[None], context(seen.path.cond).to(gain.device))[0]
        spread = self.clip * (gathered(advantage).square().mean().sqrt() + advantages.EPS)
        return (1 + (advantage / spread).clamp(-1, 1)) / 2

    def _loss(
        self, policy: Policy, old: Diffusion, reference: Policy, x_0: State, cond: Cond, good: PerSample
    ) -> Scalar:
        t = torch.randint(1, policy.steps + 1, (len(x_0),), device=x_0.device)
        x = old.corrupt(x_0, t)
        clean = cast(Diffusion, policy).clean(x, t, cond)
        if clean.shape != x_0.shape:
            raise ValueError(
                f"nft regresses a guess of x_0 on x_0, but a {type(policy).__name__} guesses probabilities of"
                f" shape {tuple(clean.shape)} where x_0 has {tuple(x_0.shape)}; use ppo for such a chain"
            )
        with torch.no_grad():
            before = old.clean(x, t, cond)
        error = advantages.group_mean((before - x_0).abs().flatten(1).mean(1).double(), t)
        weight = old.signal(t) / error.clamp(min=advantages.EPS)
        if self.form == "advantage":
            loss = (2 * good - 1) * _square(clean - x_0)
        else:
            shift = self.strength * (clean - before)
            loss = good * _square(before + shift - x_0) + (1 - good) * _square(before - shift - x_0)
            loss = loss / self.strength
        loss = loss + self.consistency * _square(clean - x_0)
        if self.penalty:
            with torch.no_grad():
                base = cast(Diffusion, reference).clean(x, t, cond)
            loss = loss + self.penalty * _square(clean - base)
        return (weight * loss).mean()


def _square(error: Real) -> PerSample:
    return error.double().flatten(1).square().mean(1)
