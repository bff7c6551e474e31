"""Pretraining of chains, of classifiers and of regressions. Loops are generators, as in `fit`."""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from difftilt.conditions import take
from difftilt.policy import Diffusion
from difftilt.processes.gaussian import GaussianPolicy, target_for
from difftilt.shapes import Cond, Index, PerSample, Real, State
from difftilt.training.seeds import seed_round


def denoise(
    policy: GaussianPolicy,
    data: Real,
    cond: Cond,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int = 256,
    null: Mapping[str, Tensor] | None = None,
    drop: float = 0.1,
    seed: int = 0,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """Descends E_t |network(a x_0 + s z, t, c) - target|^2, and yields after every gradient step.

    Averages of the weights and learning-rate schedules are moved by the caller, in the body of its loop.

    Args:
        policy: A chain with many steps; t is uniform over them.
        data: Clean samples.
        cond: The condition of each.
        null: Entries of `cond`, each for one sample, that ask for nothing.
        drop: Share of the samples whose condition is replaced by `null`, in [0, 1], so that the same
            network learns the unconditional distribution.
        seed: Step k draws from generators seeded by (seed, k).
        start: Number of the first step; those before were made by another process.
    """
    for number, rows in _minibatches(len(data), batch, steps, seed, start):
        t = torch.randint(1, policy.steps + 1, (batch,))
        x_0, given = data[rows], _forget(take(cond, rows), null or {}, drop)
        a, s = (level[t].view(-1, *(1,) * (data.ndim - 1)) for level in (policy.alpha, policy.sigma))
        z = torch.randn_like(x_0)
        output = policy.network(a * x_0 + s * z, policy.time[t], given)
        loss = F.mse_loss(output, target_for(policy.prediction_type, x_0, z, a, s))
        yield _step(loss, optimizer, number)


def explain(
    policy: Diffusion,
    data: State,
    cond: Cond,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int = 256,
    even: bool = False,
    seed: int = 0,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """Descends T E_t of the chain's loss, t uniform in 1, ..., T, and yields after every gradient step.

    In nats; of tokens it is minus the evidence lower bound of log p(x_0), but for the part of x_T.

    Args:
        policy: Any chain that reverses a known noising process.
        data: Clean samples; tokens where the chain draws tokens.
        cond: The condition of each.
        even: Spread the t of a batch evenly, so that its loss varies less.
        seed: Step k draws from generators seeded by (seed, k).
        start: Number of the first step; those before were made by another process.
    """
    for number, rows in _minibatches(len(data), batch, steps, seed, start):
        if even:
            share = (torch.arange(batch, device=data.device) + torch.rand(1, device=data.device)) / batch
            t = (share * policy.steps).long().clamp(max=policy.steps - 1) + 1
        else:
            t = torch.randint(1, policy.steps + 1, (batch,), device=data.device)
        loss = policy.steps * policy.loss(data[rows], t, take(cond, rows))
        yield _step(loss.mean(), optimizer, number)


def regress(
    network: nn.Module,
    data: State,
    value: PerSample,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int = 256,
    seed: int = 0,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """Descends Huber's loss of predicted numbers, and yields after every gradient step.

    Args:
        network: Maps samples to one number each.
        seed: Step k draws from generators seeded by (seed, k).
        start: Number of the first step; those before were made by another process.
    """
    for number, rows in _minibatches(len(data), batch, steps, seed, start):
        yield _step(F.huber_loss(network(data[rows]), value[rows]), optimizer, number)


def classify(
    network: nn.Module,
    data: Real,
    label: Index,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int = 128,
    augment: Callable[[Real], Real] = lambda x: x,
    smoothing: float = 0.0,
    seed: int = 0,
    start: int = 0,
) -> Iterator[dict[str, float]]:
    """Descends the cross-entropy of a classifier, and yields after every gradient step.

    Args:
        network: Maps samples to logits.
        augment: Changes samples at random without changing their class.
        smoothing: Share of the label's probability that is spread over all classes, in [0, 1).
        seed: Step k draws from generators seeded by (seed, k).
        start: Number of the first step; those before were made by another process.
    """
    for number, rows in _minibatches(len(data), batch, steps, seed, start):
        logits = network(augment(data[rows]))
        loss = F.cross_entropy(logits, label[rows], label_smoothing=smoothing)
        yield _step(loss, optimizer, number)


def classify_noised(
    network: nn.Module,
    policy: Diffusion,
    data: State,
    label: Index,
    cond: Cond,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    batch: int = 256,
    seed: int = 0,
) -> Iterator[dict[str, float]]:
    """Descends the cross-entropy of a classifier of noised samples, and yields after every gradient step.

        L = -E_t log p(y | x_t, t, c),   x_t ~ q(x_t | x_0),   t uniform in 0, ..., T,

    whose minimum is log E[p(y | x_0) | x_t, c], a soft value.

    Args:
        network: Maps (x_t, t, cond) to logits.
        policy: The chain that is to be guided, for its noise.
        cond: The condition of each sample.
        seed: Step k draws from generators seeded by (seed, k).
    """
    for number, rows in _minibatches(len(data), batch, steps, seed):
        t = torch.randint(policy.steps + 1, (batch,))
        logits = network(policy.corrupt(data[rows], t), t, take(cond, rows))
        yield _step(F.cross_entropy(logits, label[rows]), optimizer, number)


def warm_cosine(optimizer: torch.optim.Optimizer, steps: int, warm: float = 0.05) -> LambdaLR:
    """The learning rate rises evenly over the first steps, then falls to 0 along half a cosine.

    Args:
        steps: All steps.
        warm: Share of them in which it rises, in [0, 1].
    """

    def factor(number: int) -> float:
        rising = (number + 1) / max(1, warm * steps)
        return min(1, rising) * (1 + math.cos(math.pi * number / steps)) / 2

    return LambdaLR(optimizer, factor)


def shifted(image: Real, pixels: int = 1, fill: float = -1.0) -> Real:
    """Images moved by up to `pixels` in each direction; what comes in from outside is `fill`."""
    batch, channels, height, width = image.shape
    padded = F.pad(image, (pixels,) * 4, value=fill)
    top, left = torch.randint(2 * pixels + 1, (2, batch, 1, 1, 1))
    row = (top + torch.arange(height)[:, None]).expand(batch, channels, height, width + 2 * pixels)
    column = (left + torch.arange(width)).expand(batch, channels, height, width)
    return padded.gather(2, row).gather(3, column)


def noisy(sample: Real, std: float) -> Real:
    """Samples with Gaussian noise, each of its own deviation, uniform in [0, std]."""
    level = std * torch.rand(len(sample), *(1,) * (sample.ndim - 1))
    return sample + level * torch.randn_like(sample)


def _forget(cond: Cond, null: Mapping[str, Tensor], drop: float) -> Cond:
    """Replaces all conditions of a random share of the samples by null."""
    if not null:
        return cond
    forgotten = dict(cond)
    lost = torch.rand(len(cond[next(iter(null))])) < drop
    for name, blank in null.items():
        value = cond[name]
        if not isinstance(value, Tensor):
            raise ValueError(
                f"only tensors can be replaced by a null condition, but cond['{name}'] is a list"
            )
        forgotten[name] = torch.where(lost.view(-1, *(1,) * (value.ndim - 1)), blank, value)
    return forgotten


def _minibatches(
    count: int, batch: int, steps: int, seed: int, start: int = 0
) -> Iterator[tuple[int, Index]]:
    """The number of each step, after it is seeded, and which rows of the data it sees."""
    for number in range(start, steps):
        seed_round(seed, number)
        yield number, torch.randint(count, (batch,))


def _step(loss: Tensor, optimizer: torch.optim.Optimizer, number: int) -> dict[str, float]:
    """One gradient step, not taken if it would be NaN."""
    optimizer.zero_grad()
    loss.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    optimizer.step()
    return {"step": number, "loss": loss.item(), "grad_norm": norm.item()}
