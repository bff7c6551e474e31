"""Trajectory and detailed balance: the objectives of GFlowNets, on the chain of a diffusion model.

Malkin et al. (2022), https://arxiv.org/abs/2201.13259; relative to a pretrained chain, Venkatraman et al.
(2024), https://arxiv.org/abs/2405.20971; the log-variance form, Richter et al. (2020),
https://arxiv.org/abs/2010.10436.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import annotated_types as at
import torch

from difftilt.algorithms import advantages, replay
from difftilt.algorithms.graphs import Graphed
from difftilt.algorithms.replay import Scored
from difftilt.conditions import copied, shuffled
from difftilt.data.across import context, gathered
from difftilt.objective import Algorithm, Loss, Objective
from difftilt.policy import (
    Policy,
    Trajectory,
    Transitions,
    path_log_prob,
    per_decision,
    reversing,
    tunes_start,
)
from difftilt.settings import Count
from difftilt.shapes import Cond, PerLevel, PerSample, PerStep, State
from difftilt.values.network import ValueNetwork, ready


@dataclass(eq=False)
class TrajectoryBalance(Graphed, Algorithm):
    """Whoever drew a chain, at the optimum this is zero, and the loss is the mean of its square / 2:

        delta = log Z + sum_t log p(x_{t-1} | x_t) - sum_t log p_pre(x_{t-1} | x_t) - r(x_0) / alpha.

    With chains of the policy itself, the gradient is that of KL(p || p*).

    Args:
        balance: `trajectory` as above; `detailed` asks it of each step, with a network for log F(x_t):
            delta_t = log F(x_t) + log p - log p_pre - log F(x_{t-1}), where F(x_0) = exp(r / alpha).
        prior: `reference` is the relative form (RTB). `noising` puts p_pre(x_0) prod_t q(x_t | x_{t-1}) in
            the place of the pretrained chain (TB), which needs `density`.
        log_z: `batch`, the mean of each context in the batch: the log-variance form, or VarGrad. `scalar`,
            one number. `conditional`, a network of (x_T, c), or of c if the distribution of x_T is tuned. If
            that distribution is frozen and the chain remembers x_T, only `conditional` can be balanced.
        explore: Share of the chains that are drawn from the tempered policy, in [0, 1).
        temperature: Of those: what a Gaussian's variance is multiplied by, at least 1.
        epochs: Passes over the chains of a round, at least 1.
        minibatches: Gradient steps per pass, at least 1.
        recompute: Hold the graph of one step at a time, and compute each again in the backward pass; by
            default where the graphs of all steps would take more than a GiB. If they are held and a round
            makes one loss, of its own new chains, they are those of the draw: no state passes a second time.
        density: log p_pre(x_0, c) up to a constant, for the prior `noising`.
    """

    balance: Literal["trajectory", "detailed"] = "trajectory"
    prior: Literal["reference", "noising"] = "reference"
    log_z: Literal["batch", "scalar", "conditional"] = "batch"
    explore: Annotated[float, at.Interval(ge=0, lt=1)] = 0.0
    temperature: Annotated[float, at.Ge(1)] = 1.5
    epochs: Count = 1
    minibatches: Count = 4
    recompute: bool | None = None
    density: Callable[[State, Cond], PerSample] | None = None

    def __post_init__(self):
        super().__post_init__()
        if (self.prior == "noising") != (self.density is not None):
            raise ValueError("prior 'noising' and a density of x_0 need each other; give both or neither")
        self.flow: ValueNetwork | None = None

    def setup(self, policy: Policy, cond: Cond) -> None:
        super().setup(policy, cond)
        if self.log_z != "batch" or self.balance == "detailed":
            self.flow = ValueNetwork(policy, cond, self._asked(cond))

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        self._check_batch(cond)
        self.graphs.measure(policy, cond)
        held = self.graphs.held(policy, cond, self.epochs * self.minibatches == 1 and not self.explore)
        seen, pool = replay.draw(objective, held or policy, cond, self.explore, self.temperature)
        prior, end = self._prior(policy, pool), pool.reward / objective.alpha
        if self.density is not None:
            end = end + self.density(pool.path.states[-1].clone(), copied(pool.path.cond))
        if self.flow is not None:
            self.flow.calibrate(end - pool.path.log_prob.sum(0) + prior.sum(0))
        tuned = tunes_start(policy, cond)
        recompute = self.graphs.recompute(prior.numel() // self.minibatches)
        for _ in range(self.epochs):
            for index in shuffled(len(pool), self.minibatches, end.device, again=True):
                path = pool.path.chains(index)
                log_p = (
                    path_log_prob(policy, path, recompute=recompute)
                    if held is None
                    else held.log_prob(seen)[:, index]
                )
                ratio = log_p - prior[:, index]
                if self.balance == "detailed":
                    delta = self._steps(path, ratio, end[index], tuned, recompute)
                else:
                    delta = self._chain(path, ratio.sum(0) - end[index], tuned)[None]
                yield Loss(delta.square().sum(0).mean() / 2, seen.stats())

    def _check_batch(self, cond: Cond) -> None:
        """Raises ValueError if chains are to be compared and have none to be compared with."""
        if self.log_z != "batch" or self.balance != "trajectory":
            return
        ids = gathered(context(cond))
        batch = len(ids)
        if batch < 2 * self.minibatches:
            raise ValueError(
                f"log_z 'batch' compares chains of a minibatch, but got a batch of {batch} for"
                f" {self.minibatches} minibatches; enlarge the batch or take fewer minibatches"
            )
        if ids.max() + 1 == batch:
            raise ValueError(
                "log_z 'batch' compares chains of one context, but all"
                f" {batch // self.minibatches} of a minibatch differ; repeat the contexts, or use log_z"
                " 'conditional'"
            )

    def _prior(self, policy: Policy, pool: Scored) -> PerStep:
        """What each decision's log p is balanced with."""
        if self.prior == "reference":
            return pool.log_reference
        chain = reversing(policy, "prior 'noising' needs", "use 'reference'")
        rows, first = pool.path.transitions(), pool.log_reference.shape[1]
        q = chain.noising(rows.x_next[first:], rows.t[first:]).log_prob(rows.x[first:])
        return torch.cat([torch.zeros_like(q[:first]), q]).view_as(pool.log_reference)

    def _chain(self, path: Trajectory, ratio: PerSample, tuned: bool) -> PerSample:
        """delta of whole chains; `ratio` lacks log Z only."""
        if self.log_z == "batch":
            return advantages.group(ratio[None], context(path.cond).to(ratio.device))[0]
        seen = 0 if tuned or self.log_z == "scalar" else len(ratio)  # the row before or after x_T is drawn
        return ratio + self._flow(path.transitions(torch.arange(len(ratio), device=ratio.device) + seen))

    def _steps(
        self, path: Trajectory, ratio: PerStep, end: PerSample, tuned: bool, recompute: bool
    ) -> PerLevel:
        """delta of every step."""
        flow = torch.cat([per_decision(path, self._flow, recompute), end[None]])
        delta = flow[:-1] + ratio - flow[1:]
        return delta if tuned else delta[1:]  # a frozen distribution of x_T need not balance

    def _flow(self, rows: Transitions) -> PerSample:
        """log F before a decision, in nats; log Z before that of x_T."""
        return ready(self.flow)(rows.x, rows.t, self._asked(rows.cond))

    def _asked(self, cond: Cond) -> Cond:
        """What the flow knows of the conditions: for one number, nothing."""
        return {} if self.log_z == "scalar" else cond
