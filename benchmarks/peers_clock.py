"""The clock of `peers.py`. It needs nothing but Python, as every peer lives in an environment of its own."""

import json
import resource
import time
from collections.abc import Callable


def report(
    epoch: Callable[[int], None], count: int, reached: Callable[[], dict[str, float]] = dict[str, float]
) -> None:
    """Prints the least that an epoch takes, after one that loads what it needs, and what is reached."""
    spent = []
    for number in range(count + 1):
        start = time.process_time(), time.perf_counter()
        epoch(number)
        spent.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    cpu, wall = (min(seconds) for seconds in zip(*spent[1:], strict=True))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_seconds": cpu, "seconds": wall, "peak_mib": peak} | reached()))
