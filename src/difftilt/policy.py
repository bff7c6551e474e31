"""A generative model seen as a finite Markov chain x_T -> ... -> x_0."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from difftilt.conditions import concat, take
from difftilt.shapes import Cond, Index, PerSample, PerStep, Sample, Some, State, States, Step
from difftilt.transition import Transition, join

Decode = Callable[[State, Cond], Sample]  # see `Policy.decode`
RATIO_TOLERANCE = 1e-5  # of a log-density that is computed twice on the same rows


class Policy(nn.Module, ABC):
    """p(x_T | c) prod_t p(x_{t-1} | x_t, c): T + 1 decisions, the first of which draws x_T."""

    network: nn.Module
    steps: int  # T, the number of transitions
    symbols: int = 0  # kinds of token in a state, masks included; 0 if states are real numbers

    @abstractmethod
    def initial(self, cond: Cond) -> Transition:
        """Distribution of x_T, one row per condition. It has a density and a KL, so it can be tuned too."""

    @abstractmethod
    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        """The distribution p(x_{t-1} | x_t, c) for t in 1, ..., T."""

    @abstractmethod
    def decode(self, x: State, cond: Cond) -> Sample:
        """Maps x_0 to the object that rewards score, for instance latents to images. It never learns."""


def as_it_is(x: State, cond: Cond) -> Sample:
    """Decodes nothing: rewards score x_0."""
    return x


class Wrapped(Policy, ABC):
    """A policy around another one, whose weights it uses. It starts and decodes as that one does."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.network, self.steps, self.symbols = policy.network, policy.steps, policy.symbols
        self._base = (policy,)  # in a tuple: its weights are not this module's

    @property
    def base(self) -> Policy:
        """The policy inside."""
        return self._base[0]

    def initial(self, cond: Cond) -> Transition:
        return self.base.initial(cond)

    def decode(self, x: State, cond: Cond) -> Sample:
        return self.base.decode(x, cond)


class Diffusion(Policy, ABC):
    """A chain that reverses a known noising process q."""

    bounded: bool = True  # whether its losses, summed over t, bound -log p(x_0)

    @abstractmethod
    def noised(self, x_0: State, t: Step) -> Transition:
        """q(x_t | x_0), the distribution of the noise at once."""

    def corrupt(self, x_0: State, t: Step) -> State:
        """Draws x_t ~ q(x_t | x_0)."""
        return self.noised(x_0, t).sample()

    @abstractmethod
    def signal(self, t: Step) -> PerSample:
        """The share of x_0 that is left in x_t, in [0, 1]: the a of x_t = a x_0 + s z."""

    @abstractmethod
    def noising(self, x_next: State, t: Step) -> Transition:
        """q(x_t | x_{t-1}), the distribution that the step at t reverses."""

    @abstractmethod
    def posterior(self, x_0: State, x: State, t: Step) -> Transition:
        """q(x_{t-1} | x_t, x_0), which the step at t imitates without knowing x_0."""

    @abstractmethod
    def clean(self, x: State, t: Step, cond: Cond) -> State:
        """E[x_0 | x_t, c] as the network sees it (Tweedie), or token probabilities."""

    def loss(self, x_0: State, t: Step, cond: Cond) -> PerSample:
        """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in nats at one draw of x_t, which explains samples.

        Where t = T + 1 it is -log p(x_T). It imitates the chains that led to the samples if the chain
        reverses its noising process q.
        """
        before = t.clamp(max=self.steps)
        x = self.corrupt(x_0, before)
        return torch.where(
            t > self.steps, -self.initial(cond).log_prob(x), self.loss_at(x_0, x, before, cond)
        )

    def loss_at(self, x_0: State, x: State, t: Step, cond: Cond) -> PerSample:
        """`loss` at a given x_t, for t in 1, ..., T."""
        return self.posterior(x_0, x, t).kl(self(x, t, cond))


def reversing(policy: Policy, need: str, instead: str) -> Diffusion:
    """The policy, if it reverses a noising process; else an error of who needs it and what to do instead."""
    if not isinstance(policy, Diffusion):
        raise ValueError(
            f"{need} a chain that reverses a noising process, which a {type(policy).__name__} is not;"
            f" {instead}"
        )
    return policy


@dataclass(frozen=True)
class Transitions:
    """Rows (x_t, t, x_{t-1}, c) in any order. A row with t = T + 1 is the draw of x_T; its x is zero."""

    x: State
    t: Step
    x_next: State
    cond: Cond


@dataclass(frozen=True)
class Trajectory:
    """A batch of sampled chains.

    Args:
        states: x_T, ..., x_0, so T + 1 of them.
        sample: decode(x_0), what rewards score.
        log_prob: Of the T + 1 decisions under the policy that drew them: row k decides states[k].
        cond: One condition per chain.
    """

    states: States
    sample: Sample
    log_prob: PerStep
    cond: Cond

    def transitions(self, index: Index | None = None) -> Transitions:
        """Rows of the flattened (decision, chain) table, in the order of `log_prob.flatten()`.

        Args:
            index: Which rows; all (T + 1) * batch of them by default. Only these are copied.
        """
        decisions, batch = self.log_prob.shape
        if index is None:
            index = torch.arange(decisions * batch, device=self.log_prob.device)
        step, column = index // batch, index % batch
        x = self.states[(step - 1).clamp(min=0), column]
        x[step == 0] = 0  # the draw of x_T has seen nothing yet, and a critic must not see its outcome
        return Transitions(x, decisions - step, self.states[step, column], take(self.cond, column))

    def chains(self, index: Index) -> "Trajectory":
        """Some of the chains."""
        return Trajectory(
            self.states[:, index], self.sample[index], self.log_prob[:, index], take(self.cond, index)
        )


def side_by_side(paths: Sequence[Trajectory]) -> Trajectory:
    """All chains of all batches, in their order."""
    return Trajectory(
        torch.cat([path.states for path in paths], 1),
        torch.cat([path.sample for path in paths]),
        torch.cat([path.log_prob for path in paths], 1),
        concat([path.cond for path in paths]),
    )


def law(policy: Policy, x: State, t: Step, cond: Cond) -> Transition:
    """The distribution that draws each row's x_{t-1}: p(x_{t-1} | x_t, c), and p(x_T | c) where t = T + 1."""
    first = t > policy.steps
    if not first.any():
        return policy(x, t, cond)
    if first.all():
        return policy.initial(cond)
    start, later = first.nonzero()[:, 0], (~first).nonzero()[:, 0]
    step = policy(x[later], t[later], take(cond, later))
    return join([(start, policy.initial(take(cond, start))), (later, step)])


def decide(policy: Policy, rows: Transitions) -> Transition:
    """The distribution that drew each row's x_{t-1}."""
    return law(policy, rows.x, rows.t, rows.cond)


def tunes_start(policy: Policy, cond: Cond) -> bool:
    """Whether the distribution of x_T is trainable, so that its decision has a gradient."""
    start = policy.initial(cond)
    return start.log_prob(start.sample()).requires_grad


def path_log_prob(policy: Policy, path: Trajectory, *, recompute: bool = False) -> PerStep:
    """log p of every decision of given chains, with gradients; `recompute` as in `per_decision`."""
    return per_decision(path, lambda rows: decide(policy, rows).log_prob(rows.x_next), recompute)


def per_decision(path: Trajectory, f: Callable[[Transitions], PerSample], recompute: bool) -> PerStep:
    """One number per decision of given chains, from their rows.

    Args:
        recompute: Hold the graph of one decision at a time; the backward pass computes each again.
    """
    decisions, batch = path.log_prob.shape
    every = torch.arange(decisions * batch, device=path.log_prob.device)

    def part(index: Index) -> Some:
        return f(path.transitions(index))

    if not recompute:
        return part(every).view_as(path.log_prob)
    parts = [checkpoint(part, index, use_reentrant=False) for index in every.split(batch)]
    return torch.stack(cast(list[Some], parts))


def check_ratio(policy: Policy, path: Trajectory) -> None:
    """Makes sure that chains still have the density that they were sampled with.

    The rows are those of one step as it was sampled: kernels may round other batches differently, by up
    to 1e-3 in a sum over 10,000 dimensions. It is the last step, whose deviation is the least.
    """
    count = path.log_prob.numel()
    rows = path.transitions(torch.arange(count - len(path.sample), count, device=path.log_prob.device))
    step = policy(rows.x, rows.t, rows.cond)
    worst = (step.log_prob(rows.x_next) - path.log_prob[-1]).detach().abs().max().item()
    if worst > RATIO_TOLERANCE:
        raise ValueError(
            "before the first update the ratio of new to old policy must be 1, but its logarithm reaches"
            f" {worst:.1e}; switch off dropout and sample in the precision you train in"
        )


@dataclass(frozen=True)
class Decision:
    """One step of a chain as it is sampled: at (x, t), `step` drew `x_next`. First, t = T + 1."""

    x: State
    t: Step
    step: Transition
    x_next: State


def chain(policy: Policy, cond: Cond) -> Iterator[Decision]:
    """Samples x_T, ..., x_0 without gradients and yields each of the T + 1 decisions as it is taken."""
    decision = first(policy, cond)
    yield decision
    for t in range(policy.steps, 0, -1):
        x, time = decision.x_next, level(decision.x_next, t)
        with torch.no_grad():
            step = policy(x, time, cond)
        decision = _draw(x, time, step)
        yield decision


@torch.no_grad()
def first(policy: Policy, cond: Cond) -> Decision:
    """The draw of x_T."""
    step = policy.initial(cond)
    x = step.sample()
    return Decision(torch.zeros_like(x), level(x, policy.steps + 1), step, x)


@torch.no_grad()
def advance(policy: Policy, x: State, t: int, cond: Cond) -> Decision:
    """The draw of x_{t-1}."""
    time = level(x, t)
    return _draw(x, time, policy(x, time, cond))


@torch.no_grad()
def _draw(x: State, t: Step, step: Transition) -> Decision:
    return Decision(x, t, step, step.sample())


@torch.no_grad()
def rollout(policy: Policy, cond: Cond) -> Trajectory:
    """Samples chains and keeps every state."""
    decisions = list(chain(policy, cond))
    states = torch.stack([d.x_next for d in decisions])
    log_prob = torch.stack([d.step.log_prob(d.x_next) for d in decisions])
    return Trajectory(states, policy.decode(states[-1], cond), log_prob, cond)


def level(x: State, t: int) -> Step:
    """One t for all rows."""
    return torch.full((len(x),), t, device=x.device)
