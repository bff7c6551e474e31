"""Handlers of signals, while somebody else has them."""

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def handlers_kept(numbers: Sequence[int], meanwhile: signal.Handlers | None = None) -> Iterator[None]:
    """Puts the handlers of signals back after the block; outside the main thread there is nothing to keep.

    Args:
        meanwhile: What a signal does in the block, if not what it does now. SIG_DFL lets it end the process,
            also in a call that no exception can end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers if meanwhile is not None else ():
        signal.signal(number, meanwhile)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
