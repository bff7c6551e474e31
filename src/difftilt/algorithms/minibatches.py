"""The rows of a gradient step, dealt at random, and in parts that pass the network at once."""

from collections.abc import Iterator

import torch

from difftilt.conditions import deal_rows
from difftilt.networks.micro_batch import MicroBatch
from difftilt.policy import Policy, Trajectory
from difftilt.shapes import Index, State

AT_ONCE = 16384  # numbers in the states that pass a network at once on a CPU, whose caches hold no more
LEAST = 8  # rows at once, however large their states are


def minibatches(
    policy: Policy, path: Trajectory, count: int, share: float = 1.0
) -> Iterator[tuple[Index, float]]:
    """Shuffles the rows of the (decision, chain) table and deals a share of them into minibatches.

    Args:
        share: Of the rows that are dealt at all, in (0, 1].

    Yields:
        The rows of each minibatch in `parts`, and the share of each.
    """
    decisions, batch = path.log_prob.shape
    for index in deal_rows(decisions, batch, count, share, device=path.log_prob.device):
        yield from parts(policy, index, path.states[0])


def at_once(x: State) -> int:
    """How many of these states pass a network at once on a CPU."""
    return max(AT_ONCE // x[0].numel(), LEAST)


def parts(policy: Policy, index: Index, x: State) -> Iterator[tuple[Index, float]]:
    """The rows of a minibatch in the parts that pass the network at once, and the share of each.

    They are those of the policy's `MicroBatch`, which so need not compute anything again for the gradient.
    Without one, an accelerator takes all rows, and a CPU as many as it is quickest with. Rows of x_T pass no
    network; every part has some of them.

    Args:
        index: Rows of the (decision, chain) table, decision by decision.
        x: A state of each chain.
    """
    ordered = index.sort().values
    start, later = ordered[ordered < len(x)], ordered[ordered >= len(x)]
    bound = next((module for module in policy.modules() if isinstance(module, MicroBatch)), None)
    if bound is not None and len(later):
        passes = bound.parts(later // len(x))
        pieces = [torch.cat([start[k :: len(passes)], later[rows]]) for k, rows in enumerate(passes)]
    else:
        rows = at_once(x) if x.device.type == "cpu" else len(index)
        count = -(-len(index) // rows)
        pieces = [ordered[k::count] for k in range(count)]
    for part in pieces:
        yield part, len(part) / len(index)
