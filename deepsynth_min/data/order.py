"""The order of samples: which rows a step trains on, as a pure function.

In: the number of rows, a seed, the global batch size. Out: for each step, its rows.

The one idea: nothing is shuffled. A permutation of any size can be computed place by place, by a
small cipher over the row numbers (`Permutation`), so that ten million rows take no memory and no
time, and any step can be asked for first. All samples that a run will ever see form one endless
sequence, epoch after epoch; step s takes the s-th piece of it, whatever the number of processes,
and resuming needs only the step.

Rows of about the same length are put into the same step (`bucket` steps are sorted together and
then shuffled), so that little of a batch is padding; that too depends on the seed and the step
alone.

Sources: Luby & Rackoff 1988 (permutations from rounds), Black & Rogaway 2002 (cycle walking),
Steele et al. 2014 (the mixing function of SplitMix64).
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import index

from .row import Row

_64 = 2**64 - 1
_ROUNDS = 6


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _64
    return x ^ (x >> 31)


class Permutation:
    """A permutation of 0 .. size-1, chosen by the numbers of `key`; p[i] in constant memory."""

    def __init__(self, size: int, *key: int):
        self.size, state = size, 0
        for number in key:
            state = _mix(state ^ (number & _64))
        self.keys = [_mix(state + i) for i in range(_ROUNDS)]
        # Two halves of equal width that hold at least `size` numbers, at most about 4 times as
        # many.
        self.half = max(1, ((size - 1).bit_length() + 1) // 2)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, i: int) -> int:
        i = index(i)  # a numpy integer would overflow in _mix
        if not 0 <= i < self.size:
            raise IndexError(i)
        mask = (1 << self.half) - 1
        while True:  # numbers that land outside are sent round again: it stays a permutation
            left, right = i >> self.half, i & mask
            for key in self.keys:
                left, right = right, left ^ (_mix(right ^ key) & mask)
            i = left << self.half | right
            if i < self.size:
                return i


class Mixture:
    """Several sources of rows with weights: a row of the i-th is taken weights[i] times an epoch.

    Its rows are numbered through the sources. A source whose weight is no whole number gives a part
    of its rows, another in each epoch, until all have come equally often.
    """

    def __init__(self, sources: Sequence[Sequence[Row]], weights: Sequence[float]):
        self.sources, self.weights = sources, weights
        self.shares = [max(1, round(len(rows) * w)) for rows, w in zip(sources, weights)]
        self.starts = [0, *accumulate(len(rows) for rows in sources)]
        self.ends = list(accumulate(self.shares))
        self.turns: dict[int, tuple[int, Permutation]] = {}

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def rows_per_epoch(self) -> int:
        return self.ends[-1]

    def pick(self, epoch: int, place: int, seed: int) -> int:
        """The row that stands at `place` of an epoch before it is shuffled."""
        source = bisect_right(self.ends, place)
        place += self.shares[source] - self.ends[source]  # within the source's share
        rows = len(self.sources[source])
        turn, place = divmod(epoch * self.shares[source] + place, rows)
        if self.turns.get(source, (-1, None))[0] != turn:
            self.turns[source] = turn, Permutation(rows, seed, 4, source, turn)
        return self.starts[source] + self.turns[source][1][place]

    def source(self, i: int) -> tuple[int, int]:
        """(number of the source, row of it) that is row i of all."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = bisect_right(self.starts, i) - 1
        return number, i - self.starts[number]

    def size(self, i: int) -> int:
        number, place = self.source(i)
        return self.sources[number].size(place)

    def __getitem__(self, i: int) -> Row:
        number, place = self.source(i)
        return self.sources[number][place]

    def signature(self) -> str:
        parts = (f"{w:g} * {rows.signature()}" for rows, w in zip(self.sources, self.weights))
        return " + ".join(parts)


def rows_per_epoch(rows: Sequence[Row]) -> int:
    """How many samples one pass over the rows takes."""
    return rows.rows_per_epoch if isinstance(rows, Mixture) else len(rows)


class Order:
    """The rows of each global step.

    rows: anything with len() and, for bucketing, size(i), a measure of the length of row i. bucket:
    steps whose samples are sorted by length together; 0 or 1: as the permutation gives them.
    """

    def __init__(self, rows: Sequence[Row], seed: int, global_batch: int, bucket: int = 0):
        self.rows, self.seed = rows, seed
        self.global_batch, self.bucket = global_batch, max(1, bucket)
        self.epoch = (-1, None)  # the last one used and its permutation
        self.window = (-1, [])  # the last one used and its steps

    def _row(self, position: int) -> int:
        size = rows_per_epoch(self.rows)
        epoch, place = divmod(position, size)
        if epoch != self.epoch[0]:
            self.epoch = epoch, Permutation(size, self.seed, 2, epoch)
        place = self.epoch[1][place]
        return self.rows.pick(epoch, place, self.seed) if isinstance(self.rows, Mixture) else place

    def _jitter(self, window: int, row: int) -> float:
        """1 to 1.1, so that rows of like length do not meet in the same step every epoch."""
        return 1 + 0.1 * _mix(_mix(self.seed & _64 ^ _mix(window)) ^ row) / 2**64

    def step(self, step: int) -> list[int]:
        """The `global_batch` rows of a step, about shortest first if they are bucketed."""
        if self.bucket == 1:
            start = step * self.global_batch
            return [self._row(start + i) for i in range(self.global_batch)]
        number, place = divmod(step, self.bucket)
        if number != self.window[0]:
            size = self.bucket * self.global_batch
            chosen = [self._row(number * size + i) for i in range(size)]
            chosen.sort(key=lambda row: self.rows.size(row) * self._jitter(number, row))
            turns = Permutation(self.bucket, self.seed, 3, number)
            starts = [turns[i] * self.global_batch for i in range(self.bucket)]
            self.window = number, [chosen[s : s + self.global_batch] for s in starts]
        return self.window[1][place]


def share(step_rows: Sequence[int], micro: int, rank: int, world: int, size: int) -> Sequence[int]:
    """The rows of one micro-step on one rank: `size` of each piece of world * size, taken in turns,
    so that ranks which wait for each other get samples of about the same length."""
    piece = step_rows[micro * world * size : (micro + 1) * world * size]
    return piece[rank::world]
