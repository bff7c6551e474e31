"""A cluster of Ray in this machine, to which nodes can be added."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def two_workers() -> Iterator[Any]:
    """A head with two workers, which RAY_ADDRESS names."""
    before = dict(os.environ)
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of this test alone"}
    from ray.cluster_utils import Cluster

    found = Cluster()
    added(found, num_cpus=2, include_dashboard=False)
    os.environ["RAY_ADDRESS"] = str(found.address)
    yield found
    found.shutdown()
    os.environ.clear()
    os.environ |= before


def added(cluster: Any, **what: Any) -> Any:
    """A new node. Ray's way with SIGTERM is not to be that of this process, and of those that it forks."""
    handler = signal.getsignal(signal.SIGTERM)
    node = cluster.add_node(**what)
    signal.signal(signal.SIGTERM, handler)
    return node
