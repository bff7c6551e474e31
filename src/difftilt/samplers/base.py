"""Drawing from the tilted distribution without training: what samplers share."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from difftilt.conditions import batch_size, deal, on_device_of, take
from difftilt.guidance.hard_wired import hard_wired
from difftilt.networks.network_calls import NetworkCalls
from difftilt.networks.recalled import recalling
from difftilt.objective import Objective, Value
from difftilt.policy import Decision, Policy, Trajectory, first, law, level
from difftilt.samplers.memory import MIB, of_a_row
from difftilt.samplers.result import Steered, joined
from difftilt.settings import Positive, check_settings
from difftilt.shapes import Cond, Index, PerSample, Sample, Some, State, Step
from difftilt.transition import Transition, join


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
    def advance(self, x: State, t: int, cond: Cond, index: Index | None = None) -> Decision:
        """The draw of x_{t-1}.

        Args:
            index: Go on from copies of some of the states only; what a value has seen of all is not passed
                again.
        """
        time = level(x, t)
        step = self._law(self.policy, x, time, cond)
        if index is not None:
            x, time, step = x[index], time[index], step.rows(index)
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
    def corrections(self, d: Decision, draws: Sequence[State], cond: Cond) -> list[PerSample]:
        """log p_pre - log p of draws from a decision's distribution: 0 if the reference proposes."""
        if self.policy is self.objective.reference:
            return [torch.zeros(len(x), dtype=torch.float64, device=x.device) for x in draws]
        base = self._law(self.objective.reference, d.x, d.t, cond)
        return [base.log_prob(x) - d.step.log_prob(x) for x in draws]

    def _law(self, policy: Policy, x: State, t: Step, cond: Cond) -> Transition:
        """The distribution of the next states, found for some rows at a time."""
        parts = torch.arange(len(x), device=x.device).split(self.rows)
        if len(parts) == 1:
            return law(policy, x, t, cond)
        return join([(rows, law(policy, x[rows], t[rows], take(cond, rows))) for rows in parts])

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
        kl_is_bound: bool = True,
    ) -> Steered:
        """Samples, given what is known of them; their KL from the weights of their populations by default."""
        alpha, sample = self.objective.alpha, self.policy.decode(x_0, cond)
        kl = reward / alpha - log_z[population] if kl is None else kl
        path = line.chains(sample, cond)
        return Steered(
            x_0, sample, cond, reward, kl, population, log_z, ess.mean(), alpha, kl_is_bound, path=path
        )


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
        rows = max(1, int(self.memory * MIB / of_a_row(policy, cond)))
        counter, calls = NetworkCalls(), objective.reward.calls
        together = max(1, rows // self.population)
        steering = Steering(objective.unfiltered, value, policy, rows, history)
        watched = counter.watching([policy.network, objective.reference.network])
        with watched, recalling(objective.reference):  # a value and a step ask about the same states
            parts = [self._draw(steering, p) for p in deal(cond, -(-batch_size(cond) // together))]
        spent = {"forward": counter.forward, "backward": counter.backward}
        return joined(parts, objective.reward.calls - calls, spent)

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
        """Adds the next states, drawn by a decision's distribution.

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
