"""From the loader to the model: a batch on its device, its pages augmented, its features known.

In: a batch in host memory. Out: the batch that the model takes.

The one idea: nothing waits for a copy. The loader's threads leave batches in pinned memory; from
there they travel on a stream of their own, while the device is still at work on the step before.
(The host is ahead of it: it asks the device for nothing between two log lines.)
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.augment import augment_batch
from ..model.batch import Batch
from ..training import feature_cache

if TYPE_CHECKING:
    from .setup import Training


class Copier:
    """Copies batches to a device; to a GPU beside what it computes."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        if self.stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self.stream):
            copied = batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)

        def in_use(tensor: Tensor) -> Tensor:  # its memory is not to be given out before that
            tensor.record_stream(computing)
            return tensor

        return copied.mapped(in_use)


def prepare(training: "Training", batch: Batch) -> Batch:
    """What the loader's threads do to a batch ahead of its step: its pages are hashed for a feature
    cache, and for a GPU it is pinned."""
    if training.cache is not None:
        batch = feature_cache.keyed(batch)
    return batch.pinned() if training.world.device.type == "cuda" else batch


def feed(training: "Training", batch: Batch, micro: int) -> Batch:
    """What the model is to see of the batch of a micro-step, counted from 0."""
    batch = _augmented(training, training.copier(batch), micro)
    if training.cache is None:
        return batch
    with training.autocast():
        return training.cache.fill(batch)


def _augmented(training: "Training", batch: Batch, micro: int) -> Batch:
    """What a page becomes depends on where its sample stands in the run, on nothing else."""
    settings, world, builder = training.settings, training.world, training.builder
    if not settings.augment.augment:
        return batch
    size = settings.optim.batch_size * world.size
    first = training.step * training.facts["global_batch"] + micro * size + world.rank
    numbers = range(first, first + size, world.size)
    if batch.places:
        numbers = [numbers[place] for place in batch.places]
    papers = [builder.paper(builder.look(number)) for number in numbers]
    return augment_batch(batch, settings.augment, settings.optim.seed, numbers, papers)
