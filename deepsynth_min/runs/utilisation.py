"""Model FLOP utilisation: what a run's steps ask for, beside what its device can do.

In: batches, and the time that their steps took. Out: FLOPs by formula (model/shape/flops.py) over
that time and the rate of a large product, as the machine has it today and not as its data sheet
says.

The one idea: nothing here asks the device a question during a step. A batch is counted from what
the host knows of it, and the rate is measured once, at the start.
"""

import time
from collections import Counter
from functools import cache

import torch

from ..model.batch import Batch
from ..model.deepseek_ocr import ENCODER, DeepseekOCR, place_of
from ..model.shape.config import ModelConfig
from ..model.shape.flops import Adapters, pages_flops, step_flops
from ..model.weights import is_adapter
from ..training.feature_cache import FeatureCache
from ..training.precision import TYPES

SIDE, SIDE_ON_CPU = 8192, 1024  # of the product: 2 ms on an H100, 45 ms on a core
BUDGET, MOST = 0.15, 5  # seconds of measuring, and times


def device_rate(device: torch.device, precision: str) -> float:
    """FLOP/s of a large square product of a layer's form, x @ weight.T, the best of a few, for what
    else runs here only takes from it; under half a second. (Of plain x @ y, torch computes fp16 on
    a CPU 20 times slower.)"""
    return _rate(device, TYPES[precision], torch.get_num_threads())


@cache  # a process that trains twice has one device
def _rate(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    side = SIDE if device.type == "cuda" else SIDE_ON_CPU
    # Random, for zeros take a GPU less power; of its own generator, for the run's is the run's.
    generator = torch.Generator(device).manual_seed(0)
    a, b = torch.randn(2, side, side, generator=generator, device=device, dtype=dtype)
    small, out, seconds = a[:64, :64].contiguous(), torch.empty_like(a), []
    torch.mm(small, small.t())  # what a library does at its first call
    while len(seconds) < 2 or (len(seconds) < MOST and sum(seconds) < BUDGET):
        _wait(device)
        began = time.perf_counter()
        torch.mm(a, b.t(), out=out)
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def adapters_of(model: DeepseekOCR) -> Adapters:
    """The weights of its adapters, by where they stand; of routed experts those of the chosen."""
    dec, weights = model.config.decoder, Counter()
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            place, size = place_of(name), parameter.numel()
            if place == "routed experts":
                size = size * dec.num_experts_per_tok // dec.n_routed_experts
            part = "second" if place in ENCODER else "decoder"
            weights["sam" if place == "SAM" else part] += size
    return Adapters(**weights)


def batch_flops(
    config: ModelConfig,
    tune: str,
    batch: Batch,
    adapters: Adapters = Adapters(),
    encoded: dict[int, int] | None = None,
) -> int:
    """Of one micro-step, forward and backward; the batch is in host memory. encoded: as for
    `step_flops`, side in px -> pages and tiles that the encoder reads."""
    views = Counter({batch.pages.shape[2]: len(batch.pages)})  # all are squares
    if batch.tiles is not None:
        views[batch.tiles.shape[2]] += len(batch.tiles)
    lengths = batch.lengths or batch.attention_mask.sum(1).tolist()
    scored, prompts = batch.num_scored, batch.prompts
    return step_flops(config, tune, views, lengths, scored, adapters, prompts, encoded)


class Work:
    """Counts the FLOPs of a run's steps on this rank."""

    def __init__(self, model: DeepseekOCR, tune: str, rate: float, known: FeatureCache | None):
        """rate: FLOP/s of this rank's device. known: the feature cache, where there is one."""
        self.config, self.tune, self.rate = model.config, tune, rate
        self.adapters, self.known = adapters_of(model), known

    def flops(self, batches: list[Batch]) -> int:
        """Of the step that was made of these micro-batches, and of none before it."""
        given = self.config, self.tune
        if self.known is None:
            return sum(batch_flops(*given, batch, self.adapters) for batch in batches)
        total = sum(batch_flops(*given, batch, self.adapters, {}) for batch in batches)
        encoded, self.known.encoded = self.known.encoded, Counter()
        return total + pages_flops(*given, encoded)
