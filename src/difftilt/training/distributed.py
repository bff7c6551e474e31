"""Several processes: each draws its own samples, and all descend the mean of their gradients.

Start them with `torchrun --nproc_per_node N`. (`accelerate launch --cpu --num_processes N` silently starts
one.) They must share the run's folder.
"""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Literal, cast

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast, gather
from torch import Tensor


def make_accelerator(
    mixed_precision: Literal["no", "bf16"] = "no", timeout_minutes: float = 10.0
) -> Accelerator:
    """The device and the process group of a run.

    Args:
        mixed_precision: `bf16` runs the networks in bfloat16. Weights and densities stay in float32.
        timeout_minutes: How long a process waits for the others before it gives up, above 0.
    """
    if mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"mixed_precision must be 'no' or 'bf16', but {mixed_precision!r} came; float16 would need its"
            " gradients scaled, and steps skipped"
        )
    if not timeout_minutes > 0:
        raise ValueError(f"the time-out must be above 0 minutes, but {timeout_minutes} came")
    wait = InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))
    accelerator = Accelerator(
        mixed_precision=mixed_precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[wait]
    )
    if accelerator.num_processes != (asked := int(os.environ.get("WORLD_SIZE", "1"))):
        raise ValueError(
            f"{asked} processes were started, but they found {accelerator.num_processes}; use torchrun"
        )
    return accelerator


def finish(accelerator: Accelerator) -> None:
    """Ends a process, once no other needs it, if there are several; call it last.

    It leaves without finalising the interpreter, which Gloo's threads can crash: they may still hold
    tensors. https://github.com/pytorch/pytorch/pull/179291
    """
    if accelerator.num_processes == 1:
        return
    accelerator.wait_for_everyone()
    accelerator.end_training()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def start_alike(modules: Iterable[nn.Module], accelerator: Accelerator) -> None:
    """Gives every process the weights and buffers of the first one."""
    if accelerator.num_processes > 1:
        for module in modules:
            for value in module.state_dict().values():
                if isinstance(value, Tensor):
                    broadcast(value)


def total(count: int, accelerator: Accelerator) -> int:
    """The sum over all processes."""
    return sum(_everywhere(count, accelerator))


def largest(count: int, accelerator: Accelerator) -> int:
    """The largest over all processes."""
    return max(_everywhere(count, accelerator))


@contextmanager
def autocast(networks: Iterable[nn.Module], accelerator: Accelerator) -> Iterator[None]:
    """Networks compute in the accelerator's precision while the block runs; their answers are float32."""
    if accelerator.mixed_precision == "no":
        yield
        return
    before = {network: vars(network).get("forward") for network in networks}
    for network in before:
        network.forward = _cast(network.forward, accelerator)
    try:
        yield
    finally:
        for network, forward in before.items():
            del network.forward
            if forward is not None:  # another library had put its own there
                network.forward = forward


def _cast(forward: Any, accelerator: Accelerator) -> Any:
    def run(*args: Any, **kwargs: Any) -> Tensor:
        with accelerator.autocast():
            return forward(*args, **kwargs).float()

    return run


def _everywhere(count: int, accelerator: Accelerator) -> list[int]:
    if accelerator.num_processes == 1:
        return [count]
    return cast(Tensor, gather(torch.tensor([count], device=accelerator.device))).tolist()
