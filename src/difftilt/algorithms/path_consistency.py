"""Path consistency learning (Nachum et al., 2017, https://arxiv.org/abs/1702.08892) of a diffusion chain.

With sub-trajectories of all lengths it is SubTB(lambda) (Madan et al., 2023,
https://arxiv.org/abs/2209.12782) relative to the pretrained chain.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import annotated_types as at
import torch

from difftilt.algorithms import replay
from difftilt.algorithms.graphs import Graphed
from difftilt.algorithms.replay import Scored
from difftilt.conditions import some_rows
from difftilt.networks.average import follow
from difftilt.objective import Algorithm, Loss, Objective
from difftilt.policy import Policy, Transitions, path_log_prob, per_decision, tunes_start
from difftilt.settings import Count, Natural, Share
from difftilt.shapes import Cond, PerLevel, PerSample, PerStep, Scalar, Weights
from difftilt.values.network import ValueNetwork, ready


@dataclass(eq=False)
class PathConsistency(Graphed, Algorithm):
    """For the optimum, and for any part x_t, ..., x_s of any chain, whoever drew it, this is zero:

        delta_{t,s} = v(x_t) / alpha + sum_{k in (s, t]} log(p / p_pre)(x_{k-1} | x_k) - v(x_s) / alpha.

    The loss is the weighted mean of delta^2 / 2 over pairs t > s, in the policy and a value network v with
    v_0 = r. If the distribution of x_T is tuned, its draw is one more decision, before which v is alpha log
    Z(c).

    Args:
        pairs: `full`, from x_T to x_0; `one_step`, s = t - 1; `fixed`, s = t - length; `all`, weighted by
            decay^(t - s), SubTB(lambda). The shorter the parts, the more the value network must know.
        length: Of the `fixed` parts, at least 1; shorter chains are taken whole.
        decay: lambda, in (0, 1]: near 1, long parts count.
        target_decay: v(x_s) is that of a moving average of the value network with this decay, in [0, 1),
            which passes no gradient; 0 takes the network itself, with its gradient.
        explore: Share of the chains that are drawn from the tempered policy, in [0, 1).
        temperature: Of those: what a Gaussian's variance is multiplied by, at least 1.
        replay: Chains that are remembered and drawn from beside the new ones, at least 0.
        epochs: Passes over as many chains as a round draws, at least 1.
        minibatches: Gradient steps per pass, at least 1.
        recompute: Hold the graph of one step at a time, and compute each again in the backward pass; by
            default where the graphs of all steps would take more than a GiB. If they are held and a round
            makes one loss, of its own new chains, they are those of the draw: no state passes a second time.
    """

    pairs: Literal["one_step", "fixed", "full", "all"] = "full"
    length: Count = 4
    decay: Share = 0.9
    target_decay: Annotated[float, at.Interval(ge=0, lt=1)] = 0.0
    explore: Annotated[float, at.Interval(ge=0, lt=1)] = 0.0
    temperature: Annotated[float, at.Ge(1)] = 1.5
    replay: Natural = 0
    epochs: Count = 1
    minibatches: Count = 4
    recompute: bool | None = None

    def __post_init__(self):
        super().__post_init__()
        self.value: ValueNetwork | None = None
        self.memory: Scored | None = None
        self.target: ValueNetwork | None = None

    def setup(self, policy: Policy, cond: Cond) -> None:
        super().setup(policy, cond)
        self.value = ValueNetwork(policy, cond)
        if self.target_decay:
            self.target = copy.deepcopy(self.value).requires_grad_(False)

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        self.graphs.measure(policy, cond)
        once = self.epochs * self.minibatches == 1 and not self.explore and not self.replay
        held = self.graphs.held(policy, cond, once)
        seen, pool = replay.draw(objective, held or policy, cond, self.explore, self.temperature)
        size = max(len(pool) // self.minibatches, 1)
        for network in self._networks():
            network.calibrate(pool.reward / objective.alpha)
        if self.replay:
            known = [self.memory] if self.memory is not None else []
            pool = self.memory = replay.join([*known, pool]).newest(self.replay + len(pool))
        tuned = tunes_start(policy, cond)
        for _ in range(self.epochs * self.minibatches):
            index = some_rows(len(pool), size, pool.reward.device)
            log_p = None if held is None else held.log_prob(seen)[:, index]
            residual, target = self._levels(policy, pool.chains(index), objective.alpha, tuned, log_p)
            yield Loss(self._mean_square(residual, target), seen.stats())
            if self.target is not None:
                follow(self.target, ready(self.value), self.target_decay)

    def _levels(
        self, policy: Policy, chains: Scored, alpha: float, tuned: bool, log_p: PerStep | None = None
    ) -> tuple[PerLevel, PerLevel]:
        """v(x_t) / alpha less the log-ratios up to x_t, for x_T to x_0: delta is a difference of two.

        Args:
            log_p: Of every decision, if the graphs are held.
        """
        recompute = self.graphs.recompute(chains.log_reference.numel())
        if log_p is None:
            log_p = path_log_prob(policy, chains.path, recompute=recompute)
        ratio = log_p - chains.log_reference
        passed = torch.cat([torch.zeros_like(ratio[:1]), ratio.cumsum(0)])
        found = []
        for network in self._networks():
            value = per_decision(chains.path, partial(_value, network), recompute)
            levels = torch.cat([value, chains.reward[None] / alpha]) - passed
            found.append(levels if tuned else levels[1:])  # the first is log Z, before x_T is drawn
        return found[0], found[1]

    def _mean_square(self, start: PerLevel, end: PerLevel) -> Scalar:
        """sum_{i < j} w_{ij} mean (start_i - end_j)^2 / 2, without forming every pair."""
        w = self._weights(len(start)).to(start)
        square = w.sum(1) @ start**2 + w.sum(0) @ end**2 - 2 * (start * (w @ end)).sum(0)
        return square.mean() / 2

    def _weights(self, levels: int) -> Weights:
        """The weight of each part from level i to level j; they sum to 1."""
        apart = torch.arange(levels)[None] - torch.arange(levels)[:, None]
        length = {"one_step": 1, "fixed": min(self.length, levels - 1), "full": levels - 1}
        if self.pairs == "all":
            weight = torch.where(apart > 0, self.decay ** apart.double(), 0)
        else:
            weight = (apart == length[self.pairs]).double()
        return weight / weight.sum()

    def _networks(self) -> tuple[ValueNetwork, ValueNetwork]:
        """v of where a part begins, and of where it ends; both in nats, v / alpha."""
        value = ready(self.value)
        return value, value if self.target is None else self.target

    def get_extra_state(self) -> dict[str, Any]:
        return {"memory": None if self.memory is None else replay.to_state(self.memory)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.memory = None if state["memory"] is None else replay.from_state(state["memory"])


def _value(network: ValueNetwork, rows: Transitions) -> PerSample:
    return network(rows.x, rows.t, rows.cond)
