"""How much memory a computation takes per row, found by running it on one."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from difftilt.conditions import take
from difftilt.policy import Policy, level
from difftilt.shapes import Cond

MIB = 2**20


def of_a_row(policy: Policy, cond: Cond) -> int:
    """Bytes that one step of one chain makes: activations, for the most part."""
    one = take(cond, torch.zeros(1, dtype=torch.long))
    with torch.random.fork_rng(), torch.no_grad():
        x = policy.initial(one).sample()
        return footprint(lambda: policy(x, level(x, policy.steps), one))


def footprint(run: Callable[[], Any]) -> int:
    """Bytes of all tensors that a computation makes: what it needs at most, if none is freed on the way."""
    with _Meter() as meter:
        run()
    return meter.bytes


class _Meter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        new = {_address(x): x for x in tree_leaves(made) if isinstance(x, Tensor)}
        self.bytes += sum(x.untyped_storage().nbytes() for place, x in new.items() if place not in given)
        return made


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
