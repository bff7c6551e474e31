"""The one training loop. It is a generator: logging, evaluation and checkpoints are its caller's body."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from difftilt.objective import Algorithm, Objective
from difftilt.policy import Policy
from difftilt.shapes import Cond
from difftilt.training.seeds import seed_round


class NonFiniteError(FloatingPointError):
    """A loss or gradient was NaN or infinite. The weights are those from before the step."""


def fit(
    policy: Policy,
    objective: Objective,
    algorithm: Algorithm,
    conds: Iterable[Cond],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator | None = None,
    *,
    seed: int = 0,
    start: int = 0,
    accumulate: int = 1,
    max_norm: float = 1.0,
) -> Iterator[dict[str, float]]:
    """Runs one round per batch of conditions, and yields the numbers of every gradient step.

    Args:
        policy: The chain to tune. Gradients are averaged over processes here, so no wrapper is needed.
        conds: One batch of conditions per round, for this process.
        optimizer: Holds the trainable parameters of the policy and of the algorithm.
        seed: Round k of process p draws from generators seeded by (seed, k, p).
        start: Number of the first round.
        accumulate: Losses per gradient step, at least 1; their mean is descended. A round ends on
            a step.
        max_norm: The gradient is clipped to this length, above 0.

    Raises:
        NonFiniteError: Before a NaN or infinite gradient reaches the weights.
    """
    accelerator = accelerator or Accelerator()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, cond in enumerate(conds, start):
        seed_round(seed, number, accelerator.process_index)
        objective.reward.round = number
        pending: dict[str, list[Tensor]] = defaultdict(list)

        def step(pending: dict[str, list[Tensor]], number: int = number) -> dict[str, float]:
            """Descends what has accumulated."""
            rescale = accumulate / len(pending["loss"])
            norm = _clip(parameters, max_norm, rescale, accelerator, number)
            optimizer.step()
            optimizer.zero_grad()
            row = {name: torch.stack(values).double().mean().item() for name, values in pending.items()}
            pending.clear()
            return {"round": number, **row, "grad_norm": norm}

        for loss in algorithm.losses(policy, objective, cond):
            accelerator.backward(loss.value / accumulate)
            for name, value in {"loss": loss.value.detach(), **loss.stats}.items():
                pending[name].append(value)
            if len(pending["loss"]) == accumulate:
                yield step(pending)
        if pending:
            yield step(pending)


def _clip(
    parameters: list[Tensor], max_norm: float, rescale: float, accelerator: Accelerator, number: int
) -> float:
    """Averages the gradient over processes and clips it."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    for p, gradient in zip(parameters, gradients, strict=True):
        p.grad = gradient
    if accelerator.num_processes > 1:
        flat = torch.cat([g.flatten() for g in gradients])
        flat = cast(Tensor, accelerator.reduce(flat, "mean"))
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(part.view_as(g))
    if rescale != 1:
        torch._foreach_mul_(gradients, rescale)
    norm = torch.as_tensor(accelerator.clip_grad_norm_(parameters, max_norm)).item()
    scaled = accelerator.scaler is not None  # float16: the scaler skips the step and tries a smaller scale
    if not scaled and not math.isfinite(norm):
        raise NonFiniteError(
            f"the gradient of round {number} is {norm}, so this step was not taken and the weights"
            " are as before; look for infinite rewards or lower the learning rate"
        )
    return norm
