"""From the loader to the model: a batch on its device, its pages augmented, its features known.

In: a batch in host memory. Out: the batch that the model takes.

The one idea: nothing waits for a copy. The loader's threads leave batches in pinned memory; from
there they travel on a stream of their own, while the device is still at work on the step before.
(The host is ahead of it: it asks the device for nothing between two log lines.)
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from ..data.augment import augment_batch
from ..data.samples import SampleBuilder
from ..model.batch import Batch
from ..settings import Settings
from ..training import feature_cache
from ..training.distributed import World


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


class Feed:
    """What the model is to see of each batch of a run."""

    def __init__(
        self,
        world: World,
        builder: SampleBuilder,
        cache: feature_cache.FeatureCache | None,
        autocast: Callable[[], AbstractContextManager],
    ):
        self.world, self.builder = world, builder
        self.cache, self.autocast = cache, autocast
        self.copy = Copier(world.device)

    def prepare(self, batch: Batch) -> Batch:
        """What the loader's threads do to a batch ahead of its step: its pages are hashed for the
        feature cache, and for a GPU it is pinned."""
        if self.cache is not None:
            batch = feature_cache.keyed(batch)
        return batch.pinned() if self.world.device.type == "cuda" else batch

    def __call__(self, batch: Batch, settings: Settings, step: int, micro: int) -> Batch:
        """The batch of a micro-step, counted from 0 in each step, on the device."""
        batch = self._augmented(self.copy(batch), settings, step, micro)
        if self.cache is None:
            return batch
        with self.autocast():
            return self.cache.fill(batch)

    def _augmented(self, batch: Batch, settings: Settings, step: int, micro: int) -> Batch:
        """What a page becomes depends on where its sample stands in the run, on nothing else."""
        optim, world, builder = settings.optim, self.world, self.builder
        if not settings.augment.augment:
            return batch
        size = optim.batch_size * world.size
        first = (step * optim.accumulate + micro) * size + world.rank
        numbers = range(first, first + size, world.size)
        if batch.places:
            numbers = [numbers[place] for place in batch.places]
        papers = [builder.paper(builder.look(number)) for number in numbers]
        return augment_batch(batch, settings.augment, optim.seed, numbers, papers)
