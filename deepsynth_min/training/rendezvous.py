"""A store of their own for the processes that start together.

In: the store that torchrun gives to its processes. Out: a part of it in which nothing stands yet.

The one idea: torchrun keeps its store when it starts processes again, with what those before have
left in it, and its count of restarts is not the same on all machines (one that came later has
counted fewer), so that no number in the environment names an attempt. Rank 0 therefore makes a name
up and gives it to each rank that asks, by a word that only this process can have asked with.
"""

import time
import uuid

import torch.distributed as dist

PAUSE = 0.01  # seconds between two looks of rank 0


def store_of_this_attempt(store: dist.Store, rank: int, size: int, timeout: float) -> dist.Store:
    """All ranks call it. timeout: seconds to wait for the others.

    Raises RuntimeError naming the ranks that did not come.
    """
    word = uuid.uuid4().hex
    if rank:
        store.set(f"asks {rank}", word)
        own = dist.PrefixStore(store.get(f"for {word}").decode(), store)
        own.set(f"joined {rank}", "")
        return own
    own, absent, began = dist.PrefixStore(word, store), set(range(1, size)), time.monotonic()
    while absent:
        for other in sorted(absent):
            if own.check([f"joined {other}"]):
                absent.remove(other)
            elif store.check([f"asks {other}"]):  # it may be one of before, which hears nothing
                store.set(f"for {store.get(f'asks {other}').decode()}", word)
        if time.monotonic() - began > timeout:
            ranks = ", ".join(map(str, sorted(absent)))
            raise RuntimeError(f"rank 0 waited {timeout} s (--timeout) in vain for ranks {ranks}")
        time.sleep(PAUSE)
    return own
