"""Proximal policy optimization of a diffusion chain.

Schulman et al. (2017), https://arxiv.org/abs/1707.06347, on the decisions of a chain as in DDPO
(Black et al., 2024, https://arxiv.org/abs/2305.13301) and DPOK (Fan et al., 2023,
https://arxiv.org/abs/2305.16381).
"""

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import annotated_types as at
import torch

from difftilt.algorithms import advantages
from difftilt.algorithms.minibatches import minibatches
from difftilt.conditions import context_keys
from difftilt.data.across import context, gathered, gathered_keys
from difftilt.objective import Algorithm, Experience, Loss, Objective, to_go
from difftilt.policy import Policy, check_ratio, decide
from difftilt.settings import Count
from difftilt.shapes import Cond, PerSample, PerStep
from difftilt.values.network import ValueNetwork

Advantage = Literal["batch", "context", "group", "leave_one_out", "path", "critic"]
MIN_HISTORY, HISTORY = 16, 64  # rewards remembered per context, as in DDPO


@dataclass(eq=False)
class PPO(Algorithm):
    """Each round samples chains from the present policy p_old, then takes several steps on

        L   = -E sum_t min(w_t A_t, clip(w_t, 1 - clip, 1 + clip) A_t),
        w_t = p(x_{t-1} | x_t) / p_old(x_{t-1} | x_t),

    where the sum runs over the T + 1 decisions. At p_old its gradient is that of -J (with kl `reward`
    or `both`), divided by the spread of A if `normalize` is on. One epoch of one minibatch is REINFORCE,
    known as DDPO-SF.

    Args:
        clip: Range of the ratio, in (0, 1).
        clip_per_dim: Clip the ratio per dimension instead, w^(1 / D): DDPO's range of 1e-4 means this.
        epochs: Passes over the rows of a round, at least 1.
        minibatches: Gradient steps per pass over shuffled (t, sample) rows, at least 1.
        advantage: Baseline of the return: the mean of the `batch`, the running mean of each `context`, the
            mean of the `group` of equal contexts in the batch (`leave_one_out`: of its other members), a
            learned `critic`, or the `path`: the batch's mean and alpha times the log-ratios so far, which at
            the optimum is the soft value of x_t, so that the gradient's noise ends there. No context is
            divided by its own deviation: that would give it its own alpha.
        normalize: Divide the loss by the root mean square of the advantages, or by alpha / 10 if that is
            more.
        kl: Where the KL counts: in the `reward` (sampled log-ratios of this and later decisions), in the
            `loss` (closed form, each decision blind to what it causes later, as in DPOK), or in `both`
            (later decisions' closed-form KL in the reward, the present one's in the loss: less variance).
        critic_weight: Weight of the critic's squared error, at least 0.
    """

    clip: Annotated[float, at.Interval(gt=0, lt=1)] = 0.2
    clip_per_dim: bool = False
    epochs: Count = 2
    minibatches: Count = 4
    advantage: Advantage = "batch"
    normalize: bool = True
    kl: Literal["reward", "loss", "both"] = "both"
    critic_weight: Annotated[float, at.Ge(0)] = 0.5

    def __post_init__(self):
        super().__post_init__()
        self.critic: ValueNetwork | None = None
        self.history: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=HISTORY))
        self.checked = False

    def setup(self, policy: Policy, cond: Cond) -> None:
        if self.advantage == "critic":
            self.critic = ValueNetwork(policy, cond)

    def losses(self, policy: Policy, objective: Objective, cond: Cond) -> Iterator[Loss]:
        seen = objective.sample(policy, cond, keep=self.kl != "reward")
        path, alpha, critic = seen.path, objective.alpha, self.critic
        if not self.checked:
            check_ratio(policy, path)
            self.checked = True
        returns = self._returns(seen)
        advantage = self._advantage(returns, seen)
        deviation = gathered(advantage).square().mean().sqrt() + advantages.EPS
        scale = advantages.floor(deviation, alpha) if self.normalize else 1.0
        dimensions = path.states[0, 0].numel() if self.clip_per_dim else 1

        for _ in range(self.epochs):
            for index, share in minibatches(policy, path, self.minibatches):
                rows = path.transitions(index)
                step = decide(policy, rows)
                log_w = step.log_prob(rows.x_next) - path.log_prob.flatten()[index]
                gain = advantages.clipped_surrogate(log_w, advantage.flatten()[index], self.clip, dimensions)
                if self.kl != "reward":
                    gain = gain - alpha * step.kl(seen.base(index))
                loss = -gain / scale
                if critic is not None:
                    error = critic(rows.x, rows.t, rows.cond) - returns.flatten()[index]
                    loss = loss + self.critic_weight * (error / scale).square()
                moved = {"kl_old": -log_w.detach().mean() * len(path.log_prob)}
                moved["clipped"] = advantages.clipped(log_w, self.clip, dimensions)
                yield Loss(loss.mean() * len(returns), seen.stats() | moved, share)

    def _returns(self, seen: Experience) -> PerStep:
        """The return of each decision: the reward, less the KL cost that is not in the loss."""
        if self.kl == "loss":
            return seen.reward.expand_as(seen.kl)
        cost = to_go(seen.log_ratio) if self.kl == "reward" else to_go(seen.kl) - seen.kl
        return seen.reward - seen.alpha * cost

    def _advantage(self, returns: PerStep, seen: Experience) -> PerStep:
        cond = seen.path.cond
        if self.advantage == "critic" and self.critic is not None:
            rows = seen.path.transitions()
            with torch.no_grad():
                return returns - self.critic(rows.x, rows.t, rows.cond).view_as(returns)
        if self.advantage == "path":
            return advantages.centre(returns - seen.alpha * (seen.log_ratio.cumsum(0) - seen.log_ratio))
        if self.advantage == "context":
            return advantages.centre(returns - seen.reward) + seen.reward - self._running_mean(seen)
        if self.advantage == "group":
            return advantages.group(returns, context(cond))
        if self.advantage == "leave_one_out":
            return advantages.leave_one_out(returns, context(cond))
        return advantages.centre(returns)

    def _running_mean(self, seen: Experience) -> PerSample:
        """Each context's mean reward over past rounds; the batch's where too few are known."""
        keys = context_keys(seen.path.cond, lasting=True)
        known = [self.history[key] for key in keys]
        every = gathered(seen.reward)
        mean = [sum(h) / len(h) if len(h) >= MIN_HISTORY else every.mean().item() for h in known]
        for key, reward in zip(gathered_keys(keys), every.tolist(), strict=True):
            self.history[key].append(reward)
        return seen.reward.new_tensor(mean)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "history": {key: list(rewards) for key, rewards in self.history.items()},
            "checked": self.checked,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        self.checked = state["checked"]
        for key, rewards in state["history"].items():
            self.history[key].extend(rewards)
