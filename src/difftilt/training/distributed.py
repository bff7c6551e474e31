"""Several processes: each draws its own samples, and all descend the mean of their gradients.

Start them with `torchrun --nproc_per_node N`. (`accelerate launch --cpu --num_processes N` silently starts
one.) They must share the run's folder.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend, InitProcessGroupKwargs, broadcast, gather
from torch import Tensor
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from difftilt.data.handlers import handlers_kept
from difftilt.networks.forward import passes_changed
from difftilt.training.settings import Precision, Training
from difftilt.training.sharding import part_of
from difftilt.training.signals import SIGNALS

SHARED = (DistributedType.NO, *(kind for kind in DistributedType if kind.value.startswith("MULTI_")))


FRESH = "fresh"  # a scheme of rendezvous


def _fresh(url: str, **settings: Any) -> Iterator[tuple[Store, int, int]]:
    """That of torchrun, apart from what processes of an earlier attempt left in the store.

    torchrun keeps one store for all attempts of a job, in which a process may find where one that is dead
    listened. Several nodes count their attempts each for themselves, so they cannot be told apart by them.
    """
    store, rank, size = next(rendezvous(url.replace(FRESH, "env", 1), **settings))
    alone = os.environ.get("GROUP_WORLD_SIZE", "1") == "1"
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if alone else "of several nodes"
    yield PrefixStore(f"attempt {attempt}", store), rank, size


register_rendezvous_handler(FRESH, _fresh)


def make_accelerator(mixed_precision: Precision = "no", timeout_minutes: float = 60.0) -> Accelerator:
    """The device and the process group of a run.

    Args:
        mixed_precision: `bf16` runs the networks in bfloat16. Weights and densities stay in float32.
        timeout_minutes: How long a process waits for the others before it gives up, above 0.
    """
    _check_precision(mixed_precision)
    if not timeout_minutes > 0:
        raise ValueError(f"the time-out must be above 0 minutes, but got {timeout_minutes}")
    wait = InitProcessGroupKwargs(init_method=f"{FRESH}://", timeout=timedelta(minutes=timeout_minutes))
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    # the wait for the others is a call that no exception ends
    with handlers_kept(SIGNALS, signal.SIG_DFL) if asked > 1 else nullcontext():
        accelerator = Accelerator(
            mixed_precision=mixed_precision, cpu=not torch.cuda.is_available(), kwargs_handlers=[wait]
        )
    if accelerator.num_processes != asked:
        raise ValueError(
            f"{asked} processes were started, but they found {accelerator.num_processes}; use torchrun"
        )
    return accelerator


def accelerator_of(training: Training) -> Accelerator:
    """The one that a training asks for."""
    return make_accelerator(training.mixed_precision, training.process_timeout)


def check_accelerator(accelerator: Accelerator) -> None:
    """Refuses an accelerator whose settings the loop would not follow, since `fit` prepares nothing.

    Raises:
        ValueError: If it accumulates gradients, computes in float16 or float8, cuts up models or compiles.
    """
    if (count := accelerator.gradient_accumulation_steps) != 1:
        raise ValueError(
            f"gradient_accumulation_steps of an Accelerator must be 1, but got {count}; give"
            f" Training(accumulate={count}) instead, which says how many losses a gradient step takes"
        )
    _check_precision(accelerator.mixed_precision)
    if (kind := accelerator.distributed_type) not in SHARED:
        raise ValueError(
            f"distributed_type of an Accelerator must be one of {', '.join(SHARED)}, but got {kind}; every"
            " process needs the whole model"
        )
    plugin = accelerator.state.dynamo_plugin
    if plugin is not None and plugin.backend != DynamoBackend.NO:
        raise ValueError(
            f"dynamo_backend of an Accelerator must be NO, but got {plugin.backend.value}; compile the"
            " policy's network with torch.compile instead"
        )


def _check_precision(name: str) -> None:
    if name not in ("no", "bf16"):
        raise ValueError(
            f"mixed_precision must be 'no' or 'bf16', but got {name!r}; float16 would need its gradients"
            " scaled, and steps skipped"
        )


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
    """Gives every process the weights and buffers of the first one, but for what is sharded by now."""
    if accelerator.num_processes > 1:
        for module in modules:
            for value in module.state_dict().values():
                if isinstance(value, Tensor) and part_of(value) is None:
                    broadcast(value)


def total(count: int, accelerator: Accelerator) -> int:
    """The sum over all processes."""
    return sum(_everywhere(count, accelerator))


def largest(count: int, accelerator: Accelerator) -> int:
    """The largest over all processes."""
    return max(_everywhere(count, accelerator))


@contextmanager
def autocast(networks: Iterable[nn.Module], precision: Precision, accelerator: Accelerator) -> Iterator[None]:
    """Networks compute in bfloat16 while the block runs, if asked to; their answers are float32.

    Args:
        precision: The run's own; `bf16` of the accelerator counts as well.
    """
    if precision == "no" and accelerator.mixed_precision == "no":
        yield
        return

    def cast_pass(_: nn.Module, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Tensor:
            with torch.autocast(accelerator.device.type, torch.bfloat16), accelerator.autocast():
                return forward(*args, **kwargs).float()

        return run

    with passes_changed(networks, cast_pass):
        yield


def _everywhere(count: int, accelerator: Accelerator) -> list[int]:
    if accelerator.num_processes == 1:
        return [count]
    return cast(Tensor, gather(torch.tensor([count], device=accelerator.device))).tolist()
