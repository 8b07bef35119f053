"""Gradient reduction against torch DDP: the same step, the same processes, the same run.

    torchrun --standalone --nproc-per-node 2 bench/scaling.py
    torchrun --standalone --nproc-per-node 8 bench/scaling.py --preset deepseek-ocr --mode base \
        --precision bf16

Two copies of one model take the same step in turn, one with our reducer, one inside DDP (Gloo on
CPUs, NCCL on GPUs); then the ratio of the medians is what counts, for both saw the same machine.
"""

import argparse
import time

import torch
from common import environment, finish, median, table
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from train_step import random_batch

from deepsynth_min.model import PRESETS, DeepseekOCR
from deepsynth_min.pages.modes import page_side
from deepsynth_min.training.distributed import GradientReducer, World, barrier, start, stop
from deepsynth_min.training.optim import LossScaler, clip_and_step, make_adamw
from deepsynth_min.training.precision import autocast, set_parameter_types
from deepsynth_min.tuning import freeze


class LossModule(nn.Module):
    """DDP hooks into forward, so the loss must be one."""

    def __init__(self, model: DeepseekOCR):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.loss_terms(batch)[0]


class Contender:
    """One copy of the model, stepping with our reduction or with DDP's."""

    def __init__(self, options, world: World, with_ddp: bool):
        self.world, self.precision = world, options.precision
        torch.manual_seed(0)
        with torch.device(world.device):
            self.model = DeepseekOCR(PRESETS[options.preset])
        freeze.freeze(self.model, options.tune)
        set_parameter_types(self.model, options.precision)
        self.optimizer = make_adamw(self.model, (0.9, 0.95), 0.01)
        self.scaler = LossScaler(False, world.device)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.reducer = None if with_ddp else GradientReducer(world, trainable)
        self.forward = LossModule(self.model)
        if with_ddp:
            self.forward = DistributedDataParallel(self.forward, gradient_as_bucket_view=True)

    def step(self, batch) -> float:
        """Seconds of one step, the device waited for."""
        self._wait()
        barrier(self.world)
        began = time.perf_counter()
        with autocast(self.world.device, self.precision):
            loss = self.forward(batch.to(self.world.device))
        if self.reducer:
            self.reducer.armed = True
            (loss / (batch.num_scored * self.world.size)).backward()
            self.reducer.finish()
        else:  # DDP takes the mean over ranks
            (loss / batch.num_scored).backward()
        clip_and_step(self.optimizer, self.scaler, 1e-4, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return time.perf_counter() - began

    def _wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    tunes = ("decoder", "projector+decoder", "all-but-sam", "all")
    parser.add_argument("--tune", choices=tunes, default="decoder")
    parser.add_argument("--mode", default="auto")
    parser.add_argument("--batch-size", type=int, default=4, help="samples per process")
    parser.add_argument("--answer", type=int, default=100)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    world = start(given.device)
    config = PRESETS[given.preset]
    side = page_side(given.mode, config.page_format)
    torch.manual_seed(1 + world.rank)
    batches = [random_batch(config, side, given.batch_size, given.answer) for _ in range(4)]
    ours, ddp = Contender(given, world, False), Contender(given, world, True)
    times: dict[str, list[float]] = {"ours": [], "ddp": []}
    for i in range(given.repeats + 3):
        pair = [("ours", ours), ("ddp", ddp)]
        for name, contender in pair if i % 2 else pair[::-1]:
            seconds = contender.step(batches[i % 4])
            if i >= 3:
                times[name].append(seconds)
    apart = max(
        (a - b).abs().max().item() for a, b in zip(ours.model.parameters(), ddp.model.parameters())
    )
    if world.is_main:
        report(given, world, times, apart)
    del ddp  # it holds on to the process group, which must outlive it
    stop()


def report(given, world: World, times: dict[str, list[float]], apart: float) -> None:
    samples = given.batch_size * world.size
    rates = {name: samples / median(seconds) for name, seconds in times.items()}
    ratio = rates["ours"] / rates["ddp"]
    rows = [(name, f"{median(times[name]) * 1e3:.1f} ms", f"{rates[name]:.2f}") for name in times]
    print(table(rows, (f"{world.size} processes", "median step", "samples/s")))
    print(f"ours / DDP: {ratio:.3f}; largest difference of a weight afterwards: {apart:.1e}")
    finish(
        {
            "bench": "scaling",
            **vars(given),
            "processes": world.size,
            "samples_per_s": rates,
            "ratio": ratio,
            "peer": "torch DistributedDataParallel",
            "weights_apart": apart,
            "device_type": world.device.type,
            **environment("torch"),
        }
    )


if __name__ == "__main__":
    main()
