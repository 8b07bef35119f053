"""What the processes of the distributed tests run: `torchrun tests/workers.py FOLDER JSON`.

For each entry of the JSON list: trains a small model, with our reducer or with torch DDP around the
same step, and writes the losses and the final weights to FOLDER/NAME.safetensors.
"""

import json
import sys
from dataclasses import replace

import torch
from conftest import SMALL
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepsynth_min import corpus
from deepsynth_min.data import SampleBuilder, collate
from deepsynth_min.distributed import (
    GradientReducer, barrier, check_same_parameters, start, stop, sum_over_ranks,
)  # fmt: skip
from deepsynth_min.freeze import freeze
from deepsynth_min.lora import LoraConfig, attach, choose
from deepsynth_min.model import DeepseekOCR
from deepsynth_min.optim import LossScaler, clip_and_step, make_adamw
from deepsynth_min.order import share
from deepsynth_min.row import Row
from deepsynth_min.settings import Settings, change
from deepsynth_min.tokenizer import load_tokenizer


class LossModule(nn.Module):
    """DDP hooks into forward, so the loss must be one."""

    def __init__(self, model: DeepseekOCR):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.loss(batch)[0]


def samples(builder) -> list:
    """Uneven on purpose: answers of 1 to 60 words, every third sample without a page."""
    made = []
    for i, document in enumerate(corpus.documents("train")[:16]):
        answer = " ".join((document.summary.split() * 4)[: (1, 60, 7, 25)[i % 4]])
        sample = builder(Row(f"row {i}", answer, document.text))
        made.append(without_page(sample) if i % 3 == 0 else sample)
    return made


def without_page(sample):
    """The same text, no page: tokens 1 .. visual are dropped."""
    ids = [sample.ids[0], *sample.ids[1 + sample.visual :]]
    return replace(sample, ids=ids, prompt=sample.prompt - sample.visual, visual=0,
                   pages=sample.pages[:0], grids=[])  # fmt: skip


def make_model(tune: str) -> DeepseekOCR:
    torch.manual_seed(0)
    model = DeepseekOCR(SMALL)
    if tune == "lora":
        attach(model, LoraConfig(rank=8, alpha=16), choose(model, ("all",)))
    freeze(model, tune)
    return model


def backward(model, ddp, batches, count, world, reducer) -> float:
    """Gradients of one global step; returns this rank's summed loss."""
    total = 0.0
    for number, batch in enumerate(batches, 1):
        last = number == len(batches)
        if ddp:  # takes the mean over ranks
            ddp.require_backward_grad_sync = last
            loss = ddp(batch)
            (loss / count * world.size).backward()
        else:
            reducer.armed = last
            loss, _ = model.loss(batch)
            (loss / count).backward()
        total += loss.item()
    if reducer:
        reducer.finish()
    return total


def train(world, folder: str, name: str, size: int, accumulate: int, tune="projector+decoder",
          with_ddp=False, steps=3) -> None:  # fmt: skip
    settings = change(Settings(), batch_size=size, accumulate=accumulate)
    builder = SampleBuilder(settings, SMALL, load_tokenizer())
    rows, model = samples(builder), make_model(tune)
    optimizer = make_adamw(model, (0.9, 0.95), 0.01)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    ddp = DistributedDataParallel(LossModule(model)) if with_ddp else None
    reducer = None if with_ddp else GradientReducer(world, list(trainable.values()))
    losses = []
    for step in range(steps):
        batches = []
        for micro in range(accumulate):
            step_rows = [i % 16 for i in range(step * 8, step * 8 + 8)]
            chosen = share(step_rows, micro, world.rank, world.size, size)
            batches.append(collate([rows[i] for i in chosen], builder.special))
        (count,) = sum_over_ranks(world, sum(batch.count for batch in batches))
        total = backward(model, ddp, batches, count, world, reducer)
        losses.append(sum_over_ranks(world, total)[0] / count)
        clip_and_step(optimizer, LossScaler(False, world.device), 2e-4, 1.0)
        optimizer.zero_grad(set_to_none=True)
    check_same_parameters(world, dict(model.named_parameters()))
    if world.is_main:
        weights = {n: p.detach().clone() for n, p in trainable.items()}
        save_file(weights, f"{folder}/{name}.safetensors", metadata={"losses": json.dumps(losses)})


if __name__ == "__main__":
    world = start("cpu", threads=1)
    for options in json.loads(sys.argv[2]):
        train(world, sys.argv[1], **options)
    barrier(world)  # no process leaves while another still talks to it
    stop()
