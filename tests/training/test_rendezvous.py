"""Processes of one attempt find each other in a store that those before have used."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch.distributed as dist
from commands import free_port

from deepsynth_min.training.rendezvous import store_of_this_attempt

SIZE = 3


@pytest.fixture
def clients():
    """Of one store, for the threads that stand for processes."""
    port, seconds = free_port(), timedelta(seconds=20)
    server = dist.TCPStore(
        "localhost", port, is_master=True, timeout=seconds, wait_for_workers=False
    )
    yield [dist.TCPStore("localhost", port, is_master=False, timeout=seconds) for _ in range(SIZE)]
    del server


def attempt(clients, *ranks: int, timeout: float = 20) -> list[dist.Store]:
    with ThreadPoolExecutor(SIZE) as pool:
        found = [
            pool.submit(store_of_this_attempt, clients[rank], rank, SIZE, timeout) for rank in ranks
        ]
        return [one.result() for one in found]


def test_all_ranks_share_a_store_in_which_nothing_is_left_of_the_attempt_before(clients):
    for number in ("1", "2", "3"):
        own = attempt(clients, *range(SIZE))
        assert not any(store.check(["greeting"]) for store in own)
        own[0].set("greeting", number)
        assert [store.get("greeting").decode() for store in own] == [number] * SIZE


def test_ranks_that_died_while_they_asked_are_not_taken_for_those_of_now(clients):
    for rank in (1, 2):
        clients[rank].set(f"asks {rank}", f"a word of rank {rank} of before")
    with pytest.raises(RuntimeError, match="rank 0 waited 0.5 s .* for ranks 1, 2"):
        attempt(clients, 0, timeout=0.5)
    own = attempt(clients, *range(SIZE))
    own[1].set("greeting", "from rank 1")
    assert own[0].get("greeting") == own[2].get("greeting") == b"from rank 1"
