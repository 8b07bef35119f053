"""Rows -> a stream of batches for one rank, in an exact order.

In: rows, a `SampleBuilder`, the step to begin at. Out: for each step a list of `Batch`es.

The one idea: which rows a step trains on is a pure function of seed and step (order.py), and making
a sample holds no state, so threads work ahead, and a run can be taken up at any step. A row that is
left out, as the settings may ask for, leaves its place empty: no other row moves.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ..files.index import Fault
from ..model.batch import Batch
from ..settings import Settings
from .order import Order, share
from .row import Row, RowError
from .samples import SampleBuilder, collate


class Loader:
    """Iterates over steps, each a list of `accumulate` batches; works ahead in threads."""

    def __init__(
        self,
        rows: Sequence[Row],
        builder: SampleBuilder,
        settings: Settings,
        rank: int = 0,
        world: int = 1,
        step: int = 0,
        finish: Callable[[Batch], Batch] = lambda batch: batch,
    ):
        self.finish = finish  # what else is to be done to a batch ahead of its step
        self.rows, self.builder, self.settings = rows, builder, settings
        self.rank, self.world, self.step = rank, world, step
        optim = settings.optim
        global_batch = optim.batch_size * optim.accumulate * world
        self.order = Order(rows, optim.seed, global_batch, settings.data.bucket)
        self.pool = ThreadPoolExecutor(settings.data.workers, thread_name_prefix="data")
        self.ahead: deque = deque()
        self.left_out: list[Fault] = []  # rows of the latest step that could not be used
        self.next_micro = step * settings.optim.accumulate

    def divide(self, settings: Settings, step: int) -> None:
        """Begins again at `step`, with micro-batches of another size; its rows are the same."""
        for batch in self.ahead:
            batch.cancel()
        self.ahead.clear()
        self.settings, self.next_micro = settings, step * settings.optim.accumulate

    def _submit(self) -> None:
        step, micro = divmod(self.next_micro, self.settings.optim.accumulate)
        size, rows = self.settings.optim.batch_size, self.order.step(step)
        chosen = tuple(share(rows, micro, self.rank, self.world, size))
        numbers = range(step * len(rows), (step + 1) * len(rows))  # of the run's samples
        numbers = share(numbers, micro, self.rank, self.world, size)
        self.ahead.append(self.pool.submit(self._make, chosen, numbers))
        self.next_micro += 1

    def _make(self, chosen: tuple[int, ...], numbers: Sequence[int]) -> tuple[Batch, list[Fault]]:
        samples, places, left_out = [], [], []
        looks = [self.builder.look(number) for number in numbers]
        for place, (i, look) in enumerate(zip(chosen, looks)):
            try:
                samples.append(self.builder(self.rows[i], look))
                places.append(place)
            except RowError as error:
                if not self.builder.skips(error):
                    raise
                left_out.append(Fault(error.where, error.reason, error.kind))
        rows = tuple(chosen[place] for place in places)
        batch = collate(
            samples or [self.builder.placeholder()],
            self.builder.special,
            rows,
            self.settings.optim.pack,
            tuple(places),
        )
        return self.finish(batch), left_out

    def __next__(self) -> list[Batch]:
        accumulate = self.settings.optim.accumulate
        while len(self.ahead) < max(self.settings.data.prefetch, accumulate) + accumulate:
            self._submit()
        made = [self.ahead.popleft().result() for _ in range(accumulate)]
        self.left_out = [fault for _, faults in made for fault in faults]
        return [batch for batch, _ in made]

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)


def held_out_shares(ends: tuple[int, ...], size: int, rank: int, world: int) -> list[range]:
    """Rows 0 .. ends[-1] in batches of `size`, none across one of `ends`, every `world`-th of them.

    Whole batches are dealt, so that what is scored together does not depend on the processes.
    """
    pieces = zip((0, *ends), ends)
    batches = [
        range(i, min(i + size, end)) for begin, end in pieces for i in range(begin, end, size)
    ]
    return batches[rank::world]
