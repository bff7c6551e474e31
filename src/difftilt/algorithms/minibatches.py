"""The rows of a gradient step, dealt at random, and in parts of the size that a CPU is quickest with."""

from collections.abc import Iterator

from difftilt.conditions import deal_rows
from difftilt.policy import Trajectory
from difftilt.shapes import Index, State

AT_ONCE = 16384  # numbers in the states that pass a network at once on a CPU, whose caches hold no more
LEAST = 8  # rows at once, however large their states are


def minibatches(path: Trajectory, count: int, share: float = 1.0) -> Iterator[tuple[Index, float]]:
    """Shuffles the rows of the (decision, chain) table and deals a share of them into minibatches.

    Args:
        share: Of the rows that are dealt at all, in (0, 1].

    Yields:
        The rows of each minibatch in `parts`, and the share of each.
    """
    decisions, batch = path.log_prob.shape
    for index in deal_rows(decisions, batch, count, share, device=path.log_prob.device):
        yield from parts(index, path.states[0])


def parts(index: Index, x: State) -> Iterator[tuple[Index, float]]:
    """The rows of a minibatch in the parts that pass the network at once, and the share of each.

    Every part holds rows of all decisions. An accelerator takes all rows; `MicroBatch` bounds what it holds.

    Args:
        x: Some states, for their size and device.
    """
    rows = max(AT_ONCE // x[0].numel(), LEAST) if x.device.type == "cpu" else len(index)
    count, ordered = -(-len(index) // rows), index.sort().values
    for k in range(count):
        part = ordered[k::count]
        yield part, len(part) / len(index)
