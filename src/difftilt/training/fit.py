"""The one training loop. It is a generator: logging, evaluation and checkpoints are its caller's body."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from difftilt.conditions import on_device_of
from difftilt.data.across import together
from difftilt.objective import Algorithm, Loss, Objective
from difftilt.policy import Policy
from difftilt.shapes import Cond
from difftilt.training.distributed import autocast, check_accelerator
from difftilt.training.kl_controller import KLController
from difftilt.training.seeds import seed_round
from difftilt.training.settings import Training
from difftilt.training.sharding import clip, part_of
from difftilt.training.trust_region import TrustRegion

LONG, RECENT = 2.0, 64  # times the median length of so many steps, which no gradient exceeds


class NonFiniteError(FloatingPointError):
    """A loss or gradient was NaN or infinite. The weights are those from before the step."""


def fit(
    policy: Policy,
    objective: Objective,
    algorithm: Algorithm,
    conds: Iterable[Cond],
    optimizer: torch.optim.Optimizer,
    training: Training | None = None,
    accelerator: Accelerator | None = None,
    *,
    start: int = 0,
    kl_controller: KLController | None = None,
    region: TrustRegion | None = None,
) -> Iterator[dict[str, float]]:
    """Runs one round per batch of conditions, and yields the numbers of every gradient step.

    Args:
        policy: The chain to tune. Gradients are averaged over processes here, so no wrapper is needed,
            but every process must start from the same weights.
        conds: One batch of conditions per round, for this process; drawn after the round is seeded.
        optimizer: Holds the trainable parameters of the policy and of the algorithm.
        training: Its seed, accumulate, max_norm and mixed_precision count here; as many rounds are run as
            there are conditions.
        start: Number of the first round.
        kl_controller: If given, it moves the objective's alpha after every round, by the KL that the round
            reports.
        region: If given, it moves the policy's learning rate after every round.

    Raises:
        NonFiniteError: Before a NaN or infinite loss or gradient reaches the weights.
        ValueError: If the accelerator is set to what is not followed here, or if the algorithm has weights
            that the optimizer does not hold.
    """
    training, accelerator, batches = training or Training(), accelerator or Accelerator(), iter(conds)
    _check(accelerator, algorithm, optimizer)
    networks = denoisers(policy, objective.reference, algorithm)
    with autocast(networks, training.mixed_precision, accelerator), together(accelerator.num_processes):
        for number in itertools.count(start):
            seed_round(training.seed, number, accelerator.process_index)
            cond = next(batches, None)
            if cond is None:
                return
            cond, pending, row = on_device_of(policy, cond), _Pending(), dict[str, float]()
            objective.reward.round = number
            head = {"round": number, "alpha": objective.alpha}
            if region is not None:
                head["learning_rate"] = region.begin(policy, cond, number)
            for loss in algorithm.losses(policy, objective, cond):
                accelerator.backward(loss.value * (loss.share / training.accumulate))
                pending.add(loss)
                if pending.full(training.accumulate):
                    row = head | _descend(optimizer, pending, number, training, accelerator)
                    yield row
                    pending = _Pending()
            if pending.steps:
                row = head | _descend(optimizer, pending, number, training, accelerator)
                yield row
            for mover in (region, kl_controller):
                if mover is not None:
                    mover.update(row)


def denoisers(policy: Policy, reference: Policy, algorithm: Algorithm) -> list[nn.Module]:
    """The networks of the chains that a run samples from, those among them that an algorithm keeps."""
    own = [module for module in algorithm.modules() if isinstance(module, Policy)]
    return [chain.network for chain in (policy, reference, *own)]


def _check(accelerator: Accelerator, algorithm: Algorithm, optimizer: torch.optim.Optimizer) -> None:
    """Refuses an accelerator that is not followed, and an algorithm whose own networks would not learn."""
    check_accelerator(accelerator)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if any(p.requires_grad and id(p) not in held for p in algorithm.parameters()):
        raise ValueError(
            f"{type(algorithm).__name__} has networks of its own that the optimizer does not train; call"
            " algorithm.setup(policy, cond) before the optimizer is made, and give it their parameters, too"
        )


class _Pending:
    """What was yielded since the last gradient step: numbers, and how many steps' worth of rows they are."""

    def __init__(self):
        self.steps, self._shares = 0.0, list[float]()
        self._numbers: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, loss: Loss) -> None:
        self.steps += loss.share
        self._shares.append(loss.share)
        for name, value in {"loss": loss.value.detach(), **loss.stats}.items():
            self._numbers[name].append(value.double())

    def full(self, accumulate: int) -> bool:
        """Whether they make a gradient step; shares need not add up to the last digit."""
        return self.steps > accumulate - 1e-6

    def means(self) -> dict[str, Tensor]:
        """The mean of each number over rows."""
        shares = torch.tensor(self._shares, dtype=torch.float64) / self.steps
        return {name: (torch.stack(x) * shares.to(x[0].device)).sum() for name, x in self._numbers.items()}


def _descend(
    optimizer: torch.optim.Optimizer,
    pending: _Pending,
    number: int,
    training: Training,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Takes one gradient step and returns the means of the pending numbers."""
    rescale = 1.0 if pending.full(training.accumulate) else training.accumulate / pending.steps
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    row = _average_numbers(pending, accelerator)
    longest = _longest(optimizer) if training.max_norm is None else training.max_norm
    norm = _average_gradients(parameters, rescale, longest, accelerator)
    if not math.isfinite(row["loss"]) or not math.isfinite(norm):
        optimizer.zero_grad()
        raise NonFiniteError(
            f"in round {number} the loss is {row['loss']} and its gradient has length {norm}, so this step"
            " was not taken and the weights are as before; look for infinite rewards or lower the"
            " learning rate"
        )
    optimizer.step()
    optimizer.zero_grad()
    if norm > 0:  # many are 0 where rewards are rare, and say nothing of those that are not
        group = optimizer.param_groups[0]
        group["norms"] = [*group.get("norms", []), norm][-RECENT:]
    return {**row, "grad_norm": norm}


def _longest(optimizer: torch.optim.Optimizer) -> float:
    """The length that the next gradient is clipped to, by those before, which are saved with the optimizer.

    A length that is right for all tasks there is not: it has the unit of the loss, and what a weight does.
    """
    norms = optimizer.param_groups[0].get("norms", [])
    return LONG * statistics.median(norms) if norms else math.inf


def _average_numbers(pending: _Pending, accelerator: Accelerator) -> dict[str, float]:
    """The mean of each number over rows and processes; standard errors shrink with the processes."""
    means = pending.means()
    row = torch.stack(list(means.values()))
    if (count := accelerator.num_processes) > 1:
        is_error = torch.tensor([name.endswith("_se") for name in means], device=row.device)
        row = cast(Tensor, accelerator.reduce(row.where(~is_error, row.square() / count), "mean"))
        row = row.where(~is_error, row.sqrt())
    return dict(zip(means, row.tolist(), strict=True))


def _average_gradients(
    parameters: list[Tensor], rescale: float, max_norm: float, accelerator: Accelerator
) -> float:
    """Averages the gradient over processes, clips it in place, and returns its length before."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    parts = [g for g in gradients if part_of(g) is not None]  # they are means already
    whole = [g for g in gradients if part_of(g) is None]
    if accelerator.num_processes > 1 and whole:
        flat = torch.cat([g.flatten() for g in whole])
        flat = cast(Tensor, accelerator.reduce(flat, "mean"))
        for g, part in zip(whole, flat.split([g.numel() for g in whole]), strict=True):
            g.copy_(part.view_as(g))
    if rescale != 1:
        torch._foreach_mul_(whole, rescale)
        for g in parts:
            g.mul_(rescale)
    return clip(parameters, max_norm)
