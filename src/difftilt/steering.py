"""Drawing from the tilted law without training: what samplers share, and what they answer.

A population of particles that ends with the weight exp(log_z), of mean Z, spends at most

    KL(law of one of its particles || p_pre) <= E[r / alpha - log_z],

so that alpha E[log_z] <= J <= alpha log Z: the sampler's J is known from below, however it works.
(Andrieu, Lee and Vihola, 2018, https://doi.org/10.3150/15-BEJ785, bound the law by the weight's moments.)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from difftilt.conditions import batch_size, concat, context, deal, on_device_of, take
from difftilt.counter import Counter
from difftilt.footprint import MIB, footprint
from difftilt.objective import Experience, Objective, Value, hard_wired, outcome
from difftilt.particles import log_mean_exp, shares
from difftilt.policy import Decision, Policy, Trajectory, advance, first, law, level, side_by_side
from difftilt.settings import Positive, check_settings
from difftilt.shapes import Cond, Index, PerSample, Sample, Scalar, Some, State
from difftilt.transition import join


@dataclass(frozen=True)
class Steered:
    """Samples that were steered towards the reward, what they earned and what they cost.

    Args:
        x_0: The last states, the samples of one population side by side.
        sample: decode(x_0), what rewards score.
        cond: The condition of each.
        reward: r(x_0).
        kl: Nats. Its mean is the path KL to the pretrained chain where the sampler is a policy, and an
            upper bound of it where populations are weighed.
        population: Which population each sample comes from; samples of different ones are independent.
        log_z: One estimate of log Z per population, in nats; the mean of exp(log_z) is Z.
        ess: Share of the particles that equally weighted ones would need, in [0, 1].
        alpha: The objective's weight of the KL.
        reward_calls: Samples scored, those in between included.
        network_calls: Samples through the denoisers, forward and backward.
        path: The chains that led to the samples, if they were asked for.
    """

    x_0: State
    sample: Sample
    cond: Cond
    reward: PerSample
    kl: PerSample
    population: Index
    log_z: Some
    ess: Scalar
    alpha: float
    reward_calls: int = 0
    network_calls: dict[str, int] = field(default_factory=dict)
    path: Trajectory | None = None

    def summary(self) -> dict[str, Any]:
        """Reward, KL in nats, J and log Z, each with its standard error, and the calls they cost."""
        reward, kl = (self._means(x) for x in (self.reward, self.kl))
        numbers = {name: x.item() for name, x in outcome(reward, kl, self.alpha).items()}
        log_z, log_z_se = self._log_z()
        return {
            "alpha": self.alpha,
            "samples": len(self.reward),
            **numbers,
            "log_z": log_z,
            "log_z_se": log_z_se,
            "ess": self.ess.item(),
            "reward_calls": self.reward_calls,
            "network_calls": self.network_calls,
        }

    def _means(self, x: PerSample) -> Some:
        """The mean of each population: within one, samples share ancestors and are not independent."""
        total = torch.zeros_like(self.log_z, dtype=torch.float64).index_add(0, self.population, x.double())
        return total / torch.bincount(self.population, minlength=len(self.log_z))

    def _log_z(self) -> tuple[float, float]:
        """log Z, averaged over the different conditions, and its standard error."""
        first_of = torch.tensor([(self.population == k).nonzero()[0, 0] for k in range(len(self.log_z))])
        ids = context(take(self.cond, first_of)).to(self.log_z.device)
        found = [self.log_z[ids == k] for k in range(int(ids.max()) + 1)]
        means = [log_mean_exp(part[None])[0].item() for part in found]
        relative = [(part - mean).exp() for part, mean in zip(found, means, strict=True)]
        error = math.sqrt(sum((w.std() ** 2 / len(w)).item() for w in relative)) / len(found)
        return sum(means) / len(means), error


@dataclass(frozen=True)
class Steering:
    """What a sampler works with.

    Args:
        value: An estimate of the soft value at t > 0; at t = 0 it is the reward, whatever this says.
        policy: What proposes; the weights correct for its difference from the reference.
        rows: How many samples go through a network at a time.
        history: Keep the chains that led to the samples.
    """

    objective: Objective
    value: Value
    policy: Policy
    rows: int
    history: bool

    def first(self, cond: Cond) -> Decision:
        """The draw of x_T."""
        return first(self.policy, cond)

    @torch.no_grad()
    def advance(self, x: State, t: int, cond: Cond) -> Decision:
        """The draw of x_{t-1}."""
        parts = torch.arange(len(x), device=x.device).split(self.rows)
        if len(parts) == 1:
            return advance(self.policy, x, t, cond)
        time = level(x, t)
        step = join([(rows, self.policy(x[rows], time[rows], take(cond, rows))) for rows in parts])
        return Decision(x, time, step, step.sample())

    @torch.no_grad()
    def potential(self, x: State, t: int, cond: Cond) -> PerSample:
        """v_t(x) / alpha in nats; NaN where a reward failed and is to be dropped."""
        rows = self.rows if t else len(x)  # a reward sees all of its samples at once
        parts = torch.arange(len(x), device=x.device).split(rows)
        values = [
            hard_wired(self.objective, self.value, x[part], level(x[part], t), take(cond, part))
            for part in parts
        ]
        return torch.cat(values).double() / self.objective.alpha

    @torch.no_grad()
    def correction(self, d: Decision, x_next: State, cond: Cond) -> PerSample:
        """log p_pre - log p of states that the decision's law drew: 0 if the reference proposes."""
        if self.policy is self.objective.reference:
            return torch.zeros(len(x_next), dtype=torch.float64, device=x_next.device)
        base = law(self.objective.reference, d.x, d.t, cond)
        return base.log_prob(x_next) - d.step.log_prob(x_next)

    def answer(
        self,
        x_0: State,
        cond: Cond,
        reward: PerSample,
        population: Index,
        log_z: Some,
        ess: Some,
        line: "Lineage",
        kl: PerSample | None = None,
    ) -> Steered:
        """Samples, given what is known of them; their KL from the weights of their populations by default."""
        alpha = self.objective.alpha
        sample = self.policy.decode(x_0)
        kl = reward / alpha - log_z[population] if kl is None else kl
        path = line.chains(sample, cond)
        return Steered(x_0, sample, cond, reward, kl, population, log_z, ess.mean(), alpha, path=path)


@dataclass(frozen=True)
class Sampler(ABC):
    """Settings of a way to draw from p_r without training.

    Args:
        memory: MiB that one pass through the denoiser may take, above 0; larger batches go in parts.
    """

    memory: Positive = 1024.0

    def __post_init__(self):
        check_settings(self)

    @property
    def population(self) -> int:
        """Particles that are sampled together for one condition."""
        return 1

    @property
    def kept(self) -> int:
        """Samples that come of one condition."""
        return 1

    def draw(
        self,
        objective: Objective,
        value: Value,
        cond: Cond,
        policy: Policy | None = None,
        *,
        history: bool = False,
    ) -> Steered:
        """Steers the chains of the conditions.

        Args:
            value: An estimate of the soft value at t > 0, in units of the reward.
            policy: What proposes; the reference by default.
            history: Keep the chains that led to the samples.
        """
        policy = policy or objective.reference
        cond = on_device_of(policy, cond)
        rows = _rows(self.memory, policy, cond)
        steering = Steering(objective, value, policy, rows, history)
        counter, calls = Counter(), objective.reward.calls
        together = max(1, rows // self.population)
        with counter.watching([policy.network, objective.reference.network]):
            parts = [self._draw(steering, p) for p in deal(cond, -(-batch_size(cond) // together))]
        spent = {"forward": counter.forward, "backward": counter.backward}
        return _joined(parts, objective.reward.calls - calls, spent)

    @abstractmethod
    def _draw(self, steering: Steering, cond: Cond) -> Steered:
        """The samples of conditions that fit into memory together."""


class Lineage:
    """States as they are drawn and selected, and the chains that led to those that are left.

    Args:
        keep: Whether to remember; else only the last states are known.
    """

    def __init__(self, keep: bool):
        self.keep, self._states, self._log_prob, self._parents = keep, [], [], []

    def append(self, d: Decision, x_next: State, parent: Index | None = None) -> None:
        """Adds the next states, drawn by a decision's law.

        Args:
            parent: Which of the earlier states each comes from; each from its own by default.
        """
        if self.keep:
            self._states.append(x_next)
            self._log_prob.append(d.step.log_prob(x_next))
            self._parents.append(parent)

    def select(self, index: Index) -> None:
        """Goes on with copies of some of the last states."""
        if self.keep:
            self._states[-1] = self._states[-1][index]
            self._log_prob[-1] = self._log_prob[-1][index]
            parent = self._parents[-1]
            self._parents[-1] = index if parent is None else parent[index]

    def chains(self, sample: Sample, cond: Cond) -> Trajectory | None:
        """The chains of the last states, whose samples and conditions are given."""
        if not self.keep:
            return None
        index = torch.arange(len(sample), device=sample.device)
        states, log_prob = [], []
        for x, log_p, parent in reversed(list(zip(self._states, self._log_prob, self._parents, strict=True))):
            states.append(x[index])
            log_prob.append(log_p[index])
            index = index if parent is None else parent[index]
        return Trajectory(torch.stack(states[::-1]), sample, torch.stack(log_prob[::-1]), cond)


def from_experience(seen: Experience, history: bool) -> Steered:
    """What a policy drew, every chain a population of its own with its importance weight."""
    log_w = seen.reward.double() / seen.alpha - seen.log_ratio.sum(0)
    path = seen.path
    return Steered(
        path.states[-1],
        path.sample,
        path.cond,
        seen.reward.double(),
        seen.kl.sum(0),
        torch.arange(len(log_w), device=log_w.device),
        log_w,
        shares(log_w[None])[0],
        seen.alpha,
        path=path if history else None,
    )


def _rows(memory: float, policy: Policy, cond: Cond) -> int:
    """How many rows of a step fit into memory, from what one row makes."""
    one = take(cond, torch.zeros(1, dtype=torch.long))
    with torch.random.fork_rng(), torch.no_grad():
        x = policy.initial(one).sample()
        used = footprint(lambda: policy(x, level(x, policy.steps), one))
    return max(1, int(memory * MIB / used))


def _joined(parts: Sequence[Steered], reward_calls: int, network_calls: dict[str, int]) -> Steered:
    """All samples of all parts, and what they cost together."""

    def cat(of: Callable[[Any], Any]) -> Any:
        return torch.cat([of(part) for part in parts])

    populations = [len(part.log_z) for part in parts]
    offsets = torch.tensor([0, *populations]).cumsum(0).tolist()
    numbered = zip(parts, offsets, strict=False)
    paths = [part.path for part in parts if part.path is not None]
    return Steered(
        cat(lambda part: part.x_0),
        cat(lambda part: part.sample),
        concat([part.cond for part in parts]),
        cat(lambda part: part.reward),
        cat(lambda part: part.kl),
        torch.cat([part.population + offset for part, offset in numbered]),
        cat(lambda part: part.log_z),
        torch.stack([part.ess * len(part.log_z) for part in parts]).sum() / sum(populations),
        parts[0].alpha,
        reward_calls,
        network_calls,
        side_by_side(paths) if paths else None,
    )
