"""Full fine-tuning of models that one process cannot hold with their moments: FSDP2, `fully_shard` of torch.

Each process holds a part of every weight, gradient and moment, by rows. Layers are gathered as they are
needed. Gradients are reduced after every backward pass, since a sum that waits is as large as the model.
"""

from typing import Any, cast

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from difftilt.objective import Algorithm
from difftilt.policy import Policy


def check_shardable(policy: Policy, reference: Policy, algorithm: Algorithm) -> None:
    """Raises ValueError if the reference shares weights with the policy, or the algorithm keeps a copy of it.

    Args:
        algorithm: Set up for the policy.
    """
    kept = {id(p) for p in reference.parameters()}  # none, where it is the model with its adapters off
    if not kept or kept & {id(p) for p in policy.parameters()}:
        raise ValueError(
            "fsdp is for full fine-tuning, but here the reference shares weights with the model, as adapters"
            " have it; use parallel 'ddp'"
        )
    if any(isinstance(module, Policy) for module in algorithm.modules()):
        name = type(algorithm).__name__
        raise ValueError(f"{name} keeps a copy of the model, which fsdp does not cut up; use parallel 'ddp'")


def shard(policy: Policy, reference: Policy, algorithm: Algorithm, accelerator: Accelerator) -> None:
    """Leaves each process its part of the networks, which must be the same in all.

    The blocks of a network, the entries of its `ModuleList`s, are gathered one at a time.
    """
    check_shardable(policy, reference, algorithm)
    from torch.distributed.device_mesh import init_device_mesh  # slow to load, as what follows is
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for network in (policy.network, reference.network):
        for layers in [module for module in network.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(network, mesh=mesh)


def part_of(x: Tensor) -> Tensor | None:
    """The part of a sharded tensor, a DTensor, that this process holds; None if it holds all of it."""
    local = getattr(x, "to_local", None)
    return None if local is None else local()


def placed(x: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, or the part of it that belongs into a sharded one."""
    if part_of(like) is None or part_of(x) is not None:
        return x
    from torch.distributed.tensor import distribute_tensor

    target = cast(Any, like)
    return distribute_tensor(x.to(like.device), target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def clip(parameters: list[Tensor], max_norm: float) -> float:
    """Clips the gradients of parameters, some of which are sharded, to a length; returns it from before."""
    sharded = [p for p in parameters if part_of(p) is not None]
    if not sharded:
        return nn.utils.clip_grad_norm_(parameters, max_norm).item()
    kinds = [sharded, [p for p in parameters if part_of(p) is None]]
    norms: list[Any] = [
        nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds if kind
    ]
    total = torch.stack([x if part_of(x) is None else x.full_tensor() for x in norms]).norm()
    for kind in kinds:
        nn.utils.clip_grads_with_norm_(kind, max_norm, total)
    return total.item()
