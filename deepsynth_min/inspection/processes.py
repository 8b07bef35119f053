"""Ctrl-C while processes are started.

In: nothing. Out: a block in which the signal is held back.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C counts when the block is left; processes started in it leave it to this one.

    A terminal's reaches every process. Blocked here, it is blocked in those started. But another
    thread, where it is not, may take it, and Python then runs the handler here, between the start
    of a process and what that is told: hence the other handler.
    """
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if came:
        signal.raise_signal(signal.SIGINT)
