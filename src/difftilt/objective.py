"""The problem that every algorithm of this library solves, and what an algorithm is."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any, ClassVar, cast

import torch
import torch.nn as nn

from difftilt.answers import Filter, attainable, repeats, variance
from difftilt.conditions import batch_size, context, deal
from difftilt.guard import Guard, Reward, RewardError
from difftilt.policy import Decision, Policy, Trajectory, chain, law
from difftilt.settings import check_settings
from difftilt.shapes import Cond, Index, PerSample, PerStep, Sample, Scalar, Some, State, Step
from difftilt.transition import Joined, Transition, rows_of

# v(x_t, t, c), an estimate of alpha log E[exp(r / alpha) | x_t, c]
Value = Callable[[State, Step, Cond], PerSample]


class Objective:
    """J(p) = E_p[r(x_0)] - alpha KL(p || reference), maximal at p* ~ reference exp(r / alpha).

    Args:
        reward: Any function of (samples, conditions); it is put behind a `Guard` unless it is one.
        reference: The pretrained chain. Its weights must stay as they are.
        alpha: Weight of the KL, above 0, in units of the reward per nat.
        diversity: If given, what is learned from is the reward less alpha times its price of a sample.
    """

    def __init__(self, reward: Reward, reference: Policy, alpha: float, diversity: Filter | None = None):
        if not alpha > 0:
            raise ValueError(f"alpha must be above 0, but got {alpha}; a small alpha means a weak KL")
        self.reward = reward if isinstance(reward, Guard) else Guard(reward)
        self.reference, self.alpha, self.diversity = reference, alpha, diversity

    @property
    def unfiltered(self) -> "Objective":
        """The same problem by the reward alone, to judge by."""
        return Objective(self.reward, self.reference, self.alpha)

    def score(self, sample: Sample, cond: Cond) -> tuple[Some, Index]:
        """The reward of the samples that have a valid one, and which they are.

        Raises:
            RewardError: If nearly no sample has one, or if the sample carries gradients and the reward none.
        """
        reward = self.reward(sample, cond)
        if sample.requires_grad and not reward.requires_grad:
            raise RewardError(
                f"reward '{self.reward.name}' detaches its input, so it has no gradient to pass back; compute"
                " it with torch operations on the sample, or use an algorithm that needs none, such as ppo"
            )
        valid = reward.isfinite().nonzero()[:, 0]
        if len(valid) < min(2, len(reward)):
            raise RewardError(
                f"reward '{self.reward.name}' is valid for {len(valid)} of {len(reward)} samples in round"
                f" {self.reward.round}, too few to learn from: it {self.reward.failure}; mend the reward"
            )
        return reward[valid], valid

    @torch.no_grad()
    def sample(
        self, policy: Policy, cond: Cond, *, gradient: bool = False, keep: bool = False
    ) -> "Experience":
        """Chains of the policy, with their rewards and their divergence from the reference.

        Args:
            gradient: Find the reward's gradient as well.
            keep: Keep the reference's distributions, for losses that ask for them at these states.
        """
        if policy.steps != self.reference.steps:
            raise ValueError(
                f"the reference takes {self.reference.steps} steps and the policy {policy.steps}; their KL"
                " needs one number of steps"
            )
        drawn: list[_Drawn] = []
        for part in [cond] if gradient or self.reward.overlap == 1 else deal(cond, self.reward.overlap):
            drawn.append(now := _Drawn())
            for d in chain(policy, part):
                base = d.step if policy is self.reference else law(self.reference, d.x, d.t, part)
                now.add(d, base, keep)
            x_0 = now.states[-1]
            if gradient and not x_0.is_floating_point():
                raise ValueError(
                    f"the reward has no gradient in states of type {x_0.dtype}; use an algorithm that needs"
                    " none, such as ppo"
                )
            with torch.set_grad_enabled(gradient):
                now.sample = policy.decode(x_0.requires_grad_(gradient), part)
            if part is not cond:
                self.reward.prefetch(now.sample, part, batch_size(cond))
        return self._judged(_side_by_side(drawn), cond, gradient, keep)

    def _judged(self, whole: "_Drawn", cond: Cond, gradient: bool, keep: bool) -> "Experience":
        """Chains with their rewards, but for those that have no valid one."""
        with torch.set_grad_enabled(gradient):
            reward, valid = self.score(whole.sample, cond)
            slope = torch.autograd.grad(reward.sum(), whole.states[-1])[0][valid] if gradient else None
        states, sample = torch.stack(whole.states).detach(), whole.sample.detach()
        path, kept = Trajectory(states, sample, torch.stack(whole.log_prob), cond), whole.kept
        if len(valid) < len(sample):
            path, kept = path.chains(valid), [step.rows(valid) for step in kept]
        log_ratios, kls = torch.stack(whole.log_ratio)[:, valid], torch.stack(whole.kl)[:, valid]
        base = _concat(kept, len(valid), valid.device) if keep else None
        seen = Experience(path, reward.detach(), log_ratios, kls, self.alpha, slope, base, valid)
        if self.diversity is None:
            return seen
        price = self.alpha * self.diversity(path.sample)
        return replace(seen, reward=seen.reward - price, earned=seen.reward)


@dataclass
class _Drawn:
    """Samples, and what belongs to each decision of their chains, decision by decision."""

    sample: Sample = field(default_factory=lambda: torch.empty(0))
    states: list[State] = field(default_factory=list)
    log_prob: list[PerSample] = field(default_factory=list)
    log_ratio: list[PerSample] = field(default_factory=list)
    kl: list[PerSample] = field(default_factory=list)
    kept: list[Transition] = field(default_factory=list)

    def add(self, d: Decision, base: Transition, keep: bool) -> None:
        self.states.append(d.x_next)
        self.log_prob.append(d.step.log_prob(d.x_next))
        self.log_ratio.append(self.log_prob[-1] - base.log_prob(d.x_next))
        self.kl.append(d.step.kl(base))
        self.kept += [base] * keep


def _side_by_side(drawn: Sequence[_Drawn]) -> _Drawn:
    """All chains of all parts of a batch, in their order."""
    if len(drawn) == 1:
        return drawn[0]

    def each(name: str) -> list[Any]:
        return [torch.cat(parts) for parts in zip(*(getattr(part, name) for part in drawn), strict=True)]

    ends = accumulate(len(part.sample) for part in drawn)
    rows = [torch.arange(end - len(part.sample), end) for end, part in zip(ends, drawn, strict=True)]
    steps = zip(*(part.kept for part in drawn), strict=True)
    kept: list[Transition] = [Joined(list(zip(rows, step, strict=True))) for step in steps]
    sample = torch.cat([part.sample for part in drawn])
    return _Drawn(sample, each("states"), each("log_prob"), each("log_ratio"), each("kl"), kept)


def _concat(steps: Sequence[Transition], batch: int, device: torch.device) -> Transition:
    """The distributions of all states of all steps, of `batch` states each, in their order.

    The first step stays apart, as that of chains which start in another way than they go on.
    """
    every = torch.arange(batch, device=device)
    parts = [
        (k == 0, rows + k * batch, law)
        for k, step in enumerate(steps)
        for rows, law in (step.parts if isinstance(step, Joined) else [(every, step)])
    ]
    merged = []
    for _, alike in groupby(parts, lambda part: (part[0], type(part[2]))):
        _, rows, laws = zip(*alike, strict=True)
        merged.append((torch.cat(rows), _cat(laws)))
    return Joined(merged)


def _cat(steps: Sequence[Transition]) -> Any:
    """Steps of one kind as one."""

    def whole(values: Sequence[Any]) -> Any:
        return _cat(values) if isinstance(values[0], Transition) else torch.cat(list(values))

    found = [rows_of(step) for step in steps]
    return replace(cast(Any, steps[0]), **{name: whole([f[name] for f in found]) for name in found[0]})


@dataclass(frozen=True)
class Experience:
    """Sampled chains, what they earned and what they cost.

    Args:
        reward: r(x_0), less what a diversity filter takes.
        log_ratio: log p - log reference of every decision; its expectation is `kl`.
        kl: KL(p || reference) in nats of every decision, in closed form.
        alpha: The objective's weight of the KL.
        slope: d r / d x_0, if it was asked for.
        reference: The reference's distributions of all decisions, in the order of `log_ratio.flatten()`, if
            they were kept.
        valid: Which of all chains that were drawn these are, if that is known: those that have a reward.
        earned: r(x_0) itself, if a filter may have taken of it.
    """

    path: Trajectory
    reward: PerSample
    log_ratio: PerStep
    kl: PerStep
    alpha: float
    slope: State | None = None
    reference: Transition | None = None
    valid: Index | None = None
    earned: PerSample | None = None

    def base(self, index: Index) -> Transition:
        """The reference's distributions in some rows of the (decision, chain) table.

        Raises:
            ValueError: If they were not kept.
        """
        if self.reference is None:
            raise ValueError("the reference's distributions are gone; sample with keep=True")
        return self.reference.rows(index)

    @property
    def log_reference(self) -> PerStep:
        """log p of every decision under the reference."""
        return self.path.log_prob - self.log_ratio

    def stats(self) -> dict[str, Scalar]:
        """Reward, KL in nats and J of the policy that drew the chains, and what tells whether all is well.

        They are those of the reward itself; `filtered_reward` is what is left of it, where a filter took any.
        """
        if self.earned is None:
            return outcome(self.reward, self.kl.sum(0), self.alpha) | self._signs
        found = outcome(self.earned, self.kl.sum(0), self.alpha) | self._signs
        filtered = {"filtered_reward": self.reward.mean(), "filtered_reward_se": standard_error(self.reward)}
        return found | filtered

    @cached_property
    def _signs(self) -> dict[str, Scalar]:
        """What monitors go by; `kl_error`, sampled log-ratios less the KL in closed form, is 0 on average."""
        earned, ratio = self.reward if self.earned is None else self.earned, self.log_ratio.sum(0)
        error = ratio - self.kl.sum(0)
        found = {"kl_error": error.mean(), "kl_error_se": standard_error(error)}
        found["attainable"] = attainable(earned, ratio, self.alpha, context(self.path.cond))
        return found | {"variance": variance(self.path.sample)} | repeats(self.path.sample)


def outcome(reward: PerSample, kl: PerSample, alpha: float) -> dict[str, Scalar]:
    """Mean reward, KL in nats and J of samples, each with its error, and what `TrustRegion` goes by."""
    numbers = {"reward": reward, "kl_nats": kl, "objective": reward - alpha * kl}
    means = {name: x.mean() for name, x in numbers.items()}
    errors = {f"{name}_se": standard_error(x) for name, x in numbers.items()}
    return means | errors | {"asked_nats": len(kl) * (errors["objective_se"] / alpha).square() / 2}


def standard_error(x: Some) -> Scalar:
    """The standard error of the mean of independent numbers; NaN of fewer than two."""
    return x.std() / len(x) ** 0.5 if len(x) > 1 else x.new_full(x.shape[1:], torch.nan)


def to_go(cost: PerStep) -> PerStep:
    """The sum of the present and all later decisions' costs."""
    return cost.flip(0).cumsum(0).flip(0)


@dataclass(frozen=True)
class Loss:
    """What an algorithm yields: a scalar to descend, and numbers to log.

    Args:
        share: The share that these rows have in a gradient step, above 0; the step is taken once the shares
            add up to 1, so that rows can pass the network in parts. `value` is the mean over these rows.
    """

    value: Scalar
    stats: dict[str, Scalar]
    share: float = 1.0


@dataclass(eq=False)
class Algorithm(nn.Module, ABC):
    """Settings, and a generator of losses. Parameters and buffers of its own are saved with the run.

    Attributes:
        filtered: Whether it learns from the numbers of `Objective.sample`, of which a diversity filter takes.
    """

    filtered: ClassVar[bool] = True

    def __post_init__(self):
        super().__init__()
        check_settings(self)

    def setup(self, policy: Policy, cond: Cond) -> None:
        """Builds what depends on the shape of a state, such as a critic. Called once, before training."""

    def arrange(self, cond: Cond, round: int) -> Cond:
        """What is sampled of the conditions of a round, before they are dealt to processes."""
        return cond

    @abstractmethod
    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        """One round: draws experience, then yields a loss wherever the paper takes a gradient step.

        The policy has moved when it resumes. How many it yields must not depend on data: processes keep step.
        """
