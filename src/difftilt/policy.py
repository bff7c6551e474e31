"""A generative model seen as a finite Markov chain x_T -> ... -> x_0."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from difftilt.shapes import Cond, Index, PerSample, PerStep, Sample, Some, State, States, Step
from difftilt.transition import Transition, join

RATIO_TOLERANCE = 1e-5  # of a log-density that is computed twice on the same rows


class Policy(nn.Module, ABC):
    """p(x_T | c) prod_t p(x_{t-1} | x_t, c): T + 1 decisions, the first of which draws x_T."""

    network: nn.Module
    steps: int  # T, the number of transitions
    symbols: int = 0  # kinds of token in a state, masks included; 0 if states are real numbers

    @abstractmethod
    def initial(self, cond: Cond) -> Transition:
        """The law of x_T, one row per condition. It has a density and a KL, so it can be tuned too."""

    @abstractmethod
    def forward(self, x: State, t: Step, cond: Cond) -> Transition:
        """The distribution p(x_{t-1} | x_t, c) for t in 1, ..., T."""

    @abstractmethod
    def decode(self, x: State) -> Sample:
        """Maps x_0 to the object that rewards score, for instance latents to images."""


class Diffusion(Policy, ABC):
    """A chain that reverses a known noising process q."""

    pretrain_with: str = "evidence.elbo"  # the loss that teaches it to explain data

    @abstractmethod
    def noised(self, x_0: State, t: Step) -> Transition:
        """q(x_t | x_0), the law of the noise at once."""

    def corrupt(self, x_0: State, t: Step) -> State:
        """Draws x_t ~ q(x_t | x_0)."""
        return self.noised(x_0, t).sample()

    @abstractmethod
    def signal(self, t: Step) -> PerSample:
        """The share of x_0 that is left in x_t, in [0, 1]: the a of x_t = a x_0 + s z."""

    @abstractmethod
    def noising(self, x_next: State, t: Step) -> Transition:
        """q(x_t | x_{t-1}), the law that the step at t reverses."""

    @abstractmethod
    def posterior(self, x_0: State, x: State, t: Step) -> Transition:
        """q(x_{t-1} | x_t, x_0), which the step at t imitates without knowing x_0."""

    @abstractmethod
    def clean(self, x: State, t: Step, cond: Cond) -> State:
        """E[x_0 | x_t, c] as the network sees it (Tweedie), or token probabilities."""


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

    def minibatches(self, count: int, share: float = 1.0) -> Iterator[Index]:
        """Shuffles the rows of the (decision, chain) table and deals a share of them into `count` parts."""
        order = torch.randperm(self.log_prob.numel(), device=self.log_prob.device)
        taken = order[: round(share * len(order))]
        if len(taken) < count:
            raise ValueError(
                f"{len(taken)} rows cannot be dealt into {count} minibatches; take fewer or enlarge the batch"
            )
        yield from taken.tensor_split(count)


def take(cond: Cond, index: Index) -> Cond:
    """Selects rows of every condition."""
    return {k: v[index] if isinstance(v, Tensor) else [v[i] for i in index.tolist()] for k, v in cond.items()}


def on_device_of(policy: Policy, cond: Cond) -> Cond:
    """The conditions where the policy's weights are."""
    weight = next(policy.parameters(), torch.empty(0))
    return {k: v.to(weight.device) if isinstance(v, Tensor) else v for k, v in cond.items()}


def batch_size(cond: Cond) -> int:
    """The number of samples that a condition asks for."""
    if not cond:
        raise ValueError("a condition came without entries; use unconditional(n) to ask for n samples")
    return len(next(iter(cond.values())))


def unconditional(n: int) -> Cond:
    """The condition of n samples about which nothing is asked."""
    return {"none": torch.zeros(n, dtype=torch.long)}


def repeat(cond: Cond, count: int) -> Cond:
    """Repeats every condition `count` times, side by side."""
    return take(cond, torch.arange(batch_size(cond)).repeat_interleave(count))


def deal(cond: Cond, count: int) -> Iterator[Cond]:
    """Conditions in `count` parts, one after the other."""
    batch = batch_size(cond)
    if batch < count:
        raise ValueError(f"a batch of {batch} has no {count} parts; enlarge the batch or take fewer parts")
    for rows in torch.arange(batch).tensor_split(count):
        yield take(cond, rows)


def context_keys(cond: Cond) -> list[str]:
    """A hash per sample, equal where all conditions are equal."""
    keys = []
    for i in range(batch_size(cond)):
        digest = hashlib.sha256()
        for name, value in cond.items():
            item = value[i]
            digest.update(name.encode() + b"\0")
            digest.update(item.encode() + b"\0" if isinstance(item, str) else as_bytes(item))
        keys.append(digest.hexdigest())
    return keys


def as_bytes(x: Tensor) -> bytes:
    """The numbers of a tensor, bit for bit, in any precision."""
    return x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def context(cond: Cond) -> Index:
    """A small number per sample, equal where all conditions are equal."""
    keys = context_keys(cond)
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    return torch.tensor([numbers[key] for key in keys])


def law(policy: Policy, x: State, t: Step, cond: Cond) -> Transition:
    """The law that draws each row's x_{t-1}: p(x_{t-1} | x_t, c), and p(x_T | c) where t = T + 1."""
    first = t > policy.steps
    if not first.any():
        return policy(x, t, cond)
    if first.all():
        return policy.initial(cond)
    start, later = first.nonzero()[:, 0], (~first).nonzero()[:, 0]
    step = policy(x[later], t[later], take(cond, later))
    return join([(start, policy.initial(take(cond, start))), (later, step)])


def decide(policy: Policy, rows: Transitions) -> Transition:
    """The law that drew each row's x_{t-1}."""
    return law(policy, rows.x, rows.t, rows.cond)


def tunes_start(policy: Policy, cond: Cond) -> bool:
    """Whether the law of x_T is trainable, so that its decision has a gradient."""
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
    worst = (decide(policy, rows).log_prob(rows.x_next) - path.log_prob[-1]).detach().abs().max().item()
    if worst > RATIO_TOLERANCE:
        raise ValueError(
            "before the first update the ratio of new to old policy must be 1, but its logarithm reaches"
            f" {worst:.1e}; switch off dropout and sample in the precision you train in"
        )


def path_kl(policy: Policy, reference: Policy, path: Trajectory) -> PerStep:
    """KL(policy || reference) in nats of every decision, in closed form at the states of given chains."""
    rows = path.transitions()
    return decide(policy, rows).kl(decide(reference, rows)).view_as(path.log_prob)


@dataclass(frozen=True)
class Decision:
    """One step of a chain as it is sampled: at (x, t) the law `step` drew `x_next`. First, t = T + 1."""

    x: State
    t: Step
    step: Transition
    x_next: State


def chain(policy: Policy, cond: Cond) -> Iterator[Decision]:
    """Samples x_T, ..., x_0 without gradients and yields each of the T + 1 decisions as it is taken."""
    decision = _first(policy, cond)
    yield decision
    for t in range(policy.steps, 0, -1):
        decision = _next(policy, decision.x_next, t, cond)
        yield decision


@torch.no_grad()
def _first(policy: Policy, cond: Cond) -> Decision:
    step = policy.initial(cond)
    x = step.sample()
    return Decision(torch.zeros_like(x), _full(x, policy.steps + 1), step, x)


@torch.no_grad()
def _next(policy: Policy, x: State, t: int, cond: Cond) -> Decision:
    time = _full(x, t)
    step = policy(x, time, cond)
    return Decision(x, time, step, step.sample())


@torch.no_grad()
def rollout(policy: Policy, cond: Cond) -> Trajectory:
    """Samples chains and keeps every state."""
    decisions = list(chain(policy, cond))
    states = torch.stack([d.x_next for d in decisions])
    log_prob = torch.stack([d.step.log_prob(d.x_next) for d in decisions])
    return Trajectory(states, policy.decode(states[-1]), log_prob, cond)


def _full(x: State, t: int) -> Step:
    return torch.full((len(x),), t, device=x.device)
