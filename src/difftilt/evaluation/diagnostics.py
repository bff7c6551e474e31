"""What a chain costs by its own nature, measured on the reference before anything is tuned."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from difftilt.conditions import batch_size, on_device_of, repeat, take
from difftilt.evaluation.estimate import Estimate, average, jackknife
from difftilt.guard import RewardError
from difftilt.objective import Objective
from difftilt.policy import Policy, level, tunes_start
from difftilt.shapes import Cond, PerSample

NOTICEABLE = 0.01  # nats below which a frozen start is no matter
FEW = 4.0  # effective draws below which the mean of exp(r / alpha) rests on next to nothing


@dataclass(frozen=True)
class FrozenStart:
    """What it costs to keep the reference's distribution of x_T.

    Args:
        bias: (alpha log Z - E v_T) / alpha in nats: what the best policy that keeps the distribution of x_T
            lacks.
        memory: Share of the variance of x_0 that x_T explains, whatever the reward; 0 if memoryless.
        draws: How many of the x_0 drawn from one x_T carry the weight exp(r / alpha), on average.
        repeats: How many x_0 were drawn from each x_T and could be scored.
    """

    bias: Estimate
    memory: Estimate
    draws: float
    repeats: int

    @property
    def warning(self) -> str:
        """One sentence with the cost and its remedies, empty if there is nothing to warn of."""
        measured = self.bias.value >= NOTICEABLE and self.bias.direction > 0
        doubtful = self.draws < FEW and self.memory.direction > 0
        if not measured and not doubtful:
            return ""
        doubt = f", a rough figure: only {self.draws:.1f} of {self.repeats} draws from one x_T carry weight"
        return (
            f"The chain remembers x_T (it explains {100 * self.memory.value:.2g} % of the variance of x_0)"
            f" and x_T's distribution is frozen, so that even the best policy stays {self.bias} nats below"
            f" alpha log Z{doubt if doubtful else ''}; use memoryless noise (eta = 1, or a flow"
            " SDE of the memoryless level), or tune the distribution of x_T (TunedStart)."
        )


def frozen_start_warning(
    policy: Policy, objective: Objective, cond: Cond, starts: int = 64, repeats: int = 16
) -> str:
    """The warning of `frozen_start`, or nothing if the policy tunes its distribution of x_T."""
    return "" if tunes_start(policy, cond) else frozen_start(objective, cond, starts, repeats).warning


@torch.no_grad()
def frozen_start(
    objective: Objective, cond: Cond, starts: int = 64, repeats: int = 16, chunk: int = 1024
) -> FrozenStart:
    """Samples several x_0 from each of several x_T of the reference.

    E v_T is a mean of logarithms of means. A logarithm of a mean of K draws is too low by about
    Var(w) / (2 K E(w)^2), w = exp(r / alpha): the jackknife over the draws removes this order, and the
    jackknife over the x_T that of log Z, and gives the standard errors. What remains is of order 1 / K^2,
    and small if `draws` is not.

    Args:
        cond: The conditions to average over. Each costs starts * repeats chains and reward calls.
        starts: x_T per condition, at least 3.
        repeats: x_0 per x_T, at least 2.
        chunk: Chains sampled at a time.
    """
    if starts < 3 or repeats < 2:
        raise ValueError(
            f"a variance needs starts >= 3 and repeats >= 2, but got {starts} and {repeats}; draw more"
        )
    cond = repeat(on_device_of(objective.reference, cond), starts)
    rows = torch.arange(batch_size(cond)).split(chunk)
    parts = [_draw(objective, take(cond, part), repeats) for part in rows]
    reward, x_0 = (torch.cat(part) for part in zip(*parts, strict=True))
    score = _valid(reward, objective.reward.name) / objective.alpha
    soft, without = _log_means(score)
    kept = score.shape[1]
    value = kept * soft - (kept - 1) * without.mean(1)
    contexts = [x.split(starts) for x in (soft, value, _vectors(x_0))]
    biases = [_bias(*pair) for pair in zip(contexts[0], contexts[1], strict=True)]
    return FrozenStart(
        bias=average(biases),
        memory=average([_memory(x) for x in contexts[2]]),
        draws=(1 / score.softmax(1).square().sum(1)).mean().item(),
        repeats=kept,
    )


def _draw(objective: Objective, cond: Cond, repeats: int) -> tuple[Tensor, Tensor]:
    """Rewards and x_0 of chains that share one x_T per condition: (condition, draw, ...)."""
    reference, rewards, ends = objective.reference, [], []
    start = reference.initial(cond).sample()
    for _ in range(repeats):
        x = start
        for t in range(reference.steps, 0, -1):
            x = reference(x, level(x, t), cond).sample()
        rewards.append(objective.reward(reference.decode(x, cond), cond).cpu().double())
        ends.append(x.cpu())
    return torch.stack(rewards, 1), torch.stack(ends, 1)


def _valid(reward: Tensor, name: str) -> Tensor:
    """As many valid rewards of every x_T as the poorest has: those that were dropped are NaN."""
    valid = reward.isfinite()
    kept = int(valid.sum(1).min())
    if kept < 2:
        raise RewardError(
            f"reward '{name}' is valid for {kept} of {reward.shape[1]} samples from one x_T, too few to"
            " measure a frozen start; draw more repeats, or mend the reward"
        )
    first = (~valid).int().argsort(dim=1, stable=True)
    return reward.gather(1, first[:, :kept])


def _vectors(x: Tensor) -> Tensor:
    """One vector per state; of tokens, their indicators."""
    return (x if x.is_floating_point() else F.one_hot(x)).flatten(2).double()


def _log_means(score: Tensor) -> tuple[Tensor, Tensor]:
    """log mean exp of each row, and the same without each of its entries."""
    count = score.shape[1]
    hole = torch.eye(count, dtype=torch.bool)
    without = score[:, None].masked_fill(hole, -torch.inf).logsumexp(2)
    return score.logsumexp(1) - math.log(count), without - math.log(count - 1)


def _bias(soft: PerSample, value: PerSample) -> Estimate:
    """log Z - E v_T / alpha from log mean exp(r / alpha) and v_T / alpha of each x_T."""
    full, without = (x[0] for x in _log_means(soft[None]))
    return _without_bias(full - value.mean(), without - _means_without(value))


def _memory(x: Tensor) -> Estimate:
    """The variance between the x_T over the whole, from vectors (start, draw, dimension)."""
    starts, repeats, _ = x.shape
    centre = x.mean(1)
    within = x.var(1).sum(1)
    away = (centre - centre.mean(0)).square().sum(1)
    # without one of them, a sum of squared distances to the mean loses n / (n - 1) times its own
    away_without = (away.sum() - away * starts / (starts - 1)) / (starts - 2)

    def share(between: Tensor, within: Tensor) -> Tensor:
        signal = between - within / repeats
        return signal / (signal + within)

    full = share(away.sum() / (starts - 1), within.mean())
    return _without_bias(full, share(away_without, _means_without(within)))


def _means_without(x: PerSample) -> PerSample:
    return (x.sum() - x) / (len(x) - 1)


def _without_bias(full: Tensor, without: PerSample) -> Estimate:
    """A statistic of independent parts, less its bias of first order, from its values without each part."""
    count = len(without)
    value = count * full - (count - 1) * without.mean()
    return Estimate(value.item(), jackknife(without).sqrt().item())
