"""What a run's data is to its step: the sizes of its rows, a usual micro-batch and the heaviest.

In: complete settings. Out: a `Load`: how many rows an epoch takes, means of their tokens, and two
batches as the loader would make them.

The one idea: time follows the usual batch, memory the heaviest. The mean is of rows taken from the
order in which the run would take them; the heaviest are the longest of all by their size in the
file, which costs no drawing, and of those that were drawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nlargest

import numpy as np

from ..data.order import Order, rows_per_epoch
from ..data.row import Row, RowError
from ..data.samples import Sample, SampleBuilder, collate
from ..data.sources import Data
from ..data.tokenizer import SpecialIds
from ..errors import UserError
from ..model.batch import Batch
from ..pages.vary import BASE, Look
from ..settings import Settings

DRAWN = 256  # rows that are drawn to be measured, at most


@dataclass(frozen=True)
class Load:
    """Of the rows that train; pages, visual, answer and length (tokens) are means."""

    rows: int  # of an epoch
    held_out: int
    drawn: int
    pages: float
    visual: float
    answer: float
    length: float
    usual: Batch
    longest: list[Sample]  # as many as a micro-batch takes, the longest first
    special: SpecialIds

    def heaviest(self, settings: Settings) -> Batch:
        """The heaviest micro-batch of these settings."""
        return _batch(self.longest, self.special, settings)


def measure(data: Data, builder: SampleBuilder, settings: Settings) -> Load:
    """Raises UserError for a row that would stop the run, or if none can be used."""
    rows, size = data.train, settings.optim.batch_size
    epoch = rows_per_epoch(rows)
    order = Order(rows, settings.optim.seed, min(DRAWN, epoch)).step(0)
    drawn = list(_drawn(builder, rows, order, [builder.look(i) for i in range(len(order))]))
    longest = nlargest(min(size, len(rows)), range(len(rows)), key=rows.size)
    long = list(_drawn(builder, rows, longest, [BASE] * len(longest)))
    if not drawn:
        raise UserError(
            f"--data {' '.join(settings.data.data)}: none of {len(order)} rows is usable"
        )
    drawn.sort(key=_length)
    lengths = np.array([_length(place) for place in drawn])
    if settings.optim.pack:  # samples of all lengths; padded, of about the same, as buckets give
        usual = (np.arange(size) * 2 + 1) * len(drawn) // (2 * size)
    else:
        usual = abs(lengths - lengths.mean()).argsort(kind="stable")[:size]
    heaviest = nlargest(size, drawn + long, key=_length)
    means = np.array([figures for _, _, figures in drawn]).mean(0).tolist()
    samples, longest = (
        [builder(rows[number], look) for number, look, _ in picked]
        for picked in ([drawn[i] for i in usual.tolist()], heaviest)
    )
    usual_batch = _batch(samples, builder.special, settings)
    counts = epoch, len(data.held_out), len(drawn)
    return Load(*counts, *means, usual_batch, longest, builder.special)


Place = tuple[int, Look, tuple[int, ...]]  # a row, how it is drawn, its figures


def _length(place: Place) -> int:
    return place[2][3]


def _drawn(
    builder: SampleBuilder, rows: Sequence[Row], numbers: Sequence[int], looks: Sequence[Look]
) -> Iterator[Place]:
    """(row, look, (pages, visual tokens, scored tokens, tokens)) of those that can be used."""
    for number, look in zip(numbers, looks):
        try:
            sample = builder(rows[number], look)
        except RowError as error:
            if not builder.skips(error):
                raise
            continue
        answer = len(sample.ids) - sample.prompt
        yield number, look, (len(sample.pages), sample.visual, answer, len(sample.ids))


def _batch(samples: list[Sample], special: SpecialIds, settings: Settings) -> Batch:
    """A micro-batch of these, over and over if they are fewer than it takes."""
    size = settings.optim.batch_size
    samples = (samples * -(-size // len(samples)))[:size]
    return collate(samples, special, pack=settings.optim.pack)
