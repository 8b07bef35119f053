"""What the processes of the distributed tests run: `python tests/helpers/workers.py FOLDER JSON`
as one of several ranks.

FOLDER `command-line`: the entries are (free port, command line of deepsynth_min.train), run one
after the other. The word `limited` in it: the second process can write no file of more than 20 kB,
and the command must fail for it; `alone`: the first process runs it, as one of one; `patient`: what
a process writes of its first checkpoint is written once step 2 has been logged.

For each entry of the JSON list: trains a small model, with our reducer, in shards or with torch DDP
around the same step, and writes the losses and the final weights to FOLDER/NAME.safetensors, which
`trained` reads.
"""

import json
import os
import random
import resource
import sys
import time
from dataclasses import replace

import torch
from run_files import lines
from safetensors import safe_open
from safetensors.torch import save_file
from small_model import SMALL
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deepsynth_min.data.order import share
from deepsynth_min.data.row import Row
from deepsynth_min.data.samples import SampleBuilder, collate
from deepsynth_min.data.tokenizer import load_tokenizer
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.model.weights import local_part
from deepsynth_min.options import change
from deepsynth_min.settings import Settings
from deepsynth_min.training import shard as shards
from deepsynth_min.training.distributed import (
    GradientReducer,
    World,
    barrier,
    check_same_parameters,
    start,
    stop,
)
from deepsynth_min.training.optim import LossScaler, clip_and_step, make_adamw
from deepsynth_min.training.precision import set_parameter_types
from deepsynth_min.training.shard import shard, whole
from deepsynth_min.tuning.freeze import freeze
from deepsynth_min.tuning.lora import LoraConfig, attach
from deepsynth_min.tuning.targets import choose

WORDS = (
    "a council meets by the river, the bridge opens in May; Ines paints 17 boats - and who writes "
    "of it? Nobody: not Otto, not the mill, not forty apple trees."
).split()


class LossModule(nn.Module):
    """DDP hooks into forward, so the loss must be one."""

    def __init__(self, model: DeepseekOCR):
        super().__init__()
        self.model = model

    def forward(self, batch):
        return self.model.loss(batch)[0]


def samples(builder) -> list:
    """Uneven on purpose: answers of 1 to 60 words, every third sample without a page."""
    chance, made = random.Random(0), []
    for i in range(16):
        text, answer = (
            " ".join(chance.choice(WORDS) for _ in range(length))
            for length in (chance.randrange(60, 250), (1, 60, 7, 25)[i % 4])
        )
        sample = builder(Row(f"row {i}", answer, text))
        made.append(without_page(sample) if i % 3 == 0 else sample)
    return made


def without_page(sample):
    """The same text, no page: tokens 1 .. visual are dropped."""
    ids = [sample.ids[0], *sample.ids[1 + sample.visual :]]
    return replace(
        sample,
        ids=ids,
        prompt=sample.prompt - sample.visual,
        visual=0,
        pages=sample.pages[:0],
        grids=[],
    )


def make_model(tune: str, targets=("all",)) -> DeepseekOCR:
    torch.manual_seed(0)
    model = DeepseekOCR(SMALL)
    if tune == "lora":
        attach(model, LoraConfig(rank=8, alpha=16), choose(model, tuple(targets)))
    freeze(model, tune)
    return model


def backward(model, ddp, batches, count, world, reducer, spoilt=False) -> float:
    """Gradients of one global step; returns this rank's summed loss. `spoilt`: it is no number."""
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
            loss = loss * float("nan") if spoilt else loss
            (loss / count).backward()
        total += loss.item()
    if reducer:
        reducer.finish()
    return total


def train(
    world,
    folder: str,
    name: str,
    size: int,
    accumulate: int,
    tune="projector+decoder",
    with_ddp=False,
    steps=3,
    sharded=False,
    weights="fp32",
    spoilt=None,
    recompute=0,
    targets=("all",),
    rates=None,
) -> None:
    settings = change(
        Settings(),
        batch_size=size,
        accumulate=accumulate,
        weights=weights,
        precision="bf16" if weights == "bf16" else "fp32",
    )
    builder = SampleBuilder(settings, SMALL, load_tokenizer())
    rows, model = samples(builder), make_model(tune, targets)
    model.recompute = recompute
    if sharded:
        shard(model, world, settings)
    else:
        set_parameter_types(model, settings.optim.precision, weights)
    optimizer = make_adamw(model, (0.9, 0.95), 0.01, rates=rates)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    ddp = DistributedDataParallel(LossModule(model)) if with_ddp else None
    reducer = (
        None
        if with_ddp
        else GradientReducer(
            World(0, 1, world.device) if sharded else world, list(trainable.values())
        )
    )
    losses = []
    for step in range(steps):
        batches = []
        for micro in range(accumulate):
            step_rows = [i % 16 for i in range(step * 8, step * 8 + 8)]
            chosen = share(step_rows, micro, world.rank, world.size, size)
            batches.append(collate([rows[i] for i in chosen], builder.special))
        (count,) = world.sum(sum(batch.num_scored for batch in batches))
        bad = step == spoilt and world.rank == world.size - 1
        total = backward(model, ddp, batches, count, world, reducer, bad)
        losses.append(world.sum(total)[0] / count)
        clip_and_step(optimizer, LossScaler(False, world.device), 2e-4, 1.0)
        optimizer.zero_grad(set_to_none=True)
    check_same_parameters(world, dict(model.named_parameters()))
    if sharded:  # of what trains, each rank holds its half, give or take an odd row
        held = sum(local_part(p).numel() for p in trainable.values())
        assert held < 0.6 * sum(p.numel() for p in trainable.values())
    final = {n: whole(p.detach()).clone() for n, p in trainable.items()}
    if world.is_main:
        save_file(final, f"{folder}/{name}.safetensors", metadata={"losses": json.dumps(losses)})


def trained(folder, names) -> dict[str, tuple[list[float], dict[str, torch.Tensor]]]:
    """Name -> (losses, final weights)."""
    results = {}
    for name in names:
        with safe_open(f"{folder}/{name}.safetensors", framework="pt") as file:
            weights = {key: file.get_tensor(key) for key in file.keys()}
            results[name] = json.loads(file.metadata()["losses"]), weights
    return results


def save_later(tensors, file, metadata) -> None:
    """save_file that waits until the run has logged its step 2, for half a minute at most."""
    metrics, end = file.parents[2] / "metrics.jsonl", time.monotonic() + 30
    while not any(line["step"] >= 2 for line in lines(file.parents[2], "train")):
        if time.monotonic() > end:
            raise OSError(f"{metrics}: training does not go on while {file.name} is written")
        time.sleep(0.01)
    save_file(tensors, file, metadata=metadata)


def run_command_line(port: int, words: list[str]) -> int:
    from deepsynth_min.train import main

    first, size = os.environ["RANK"] == "0", os.environ["WORLD_SIZE"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # A meeting place of its own: in that of the last run, what it left would still lie.
    os.environ["MASTER_PORT"] = str(port)
    if "alone" in words:
        if not first:
            return 0
        os.environ |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    if "limited" in words and not first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        shards.save_file = save_later if "patient" in words else save_file
        code = main([word for word in words if word not in ("limited", "alone", "patient")])
        return abs(code - 2) if "limited" in words else code
    finally:
        shards.save_file = save_file
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.environ |= {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}


if __name__ == "__main__" and sys.argv[1] == "command-line":
    sys.exit(max(run_command_line(*entry) for entry in json.loads(sys.argv[2])))
elif __name__ == "__main__":
    world = start("cpu", threads=1)
    for options in json.loads(sys.argv[2]):
        train(world, sys.argv[1], **options)
    barrier(world)  # no process leaves while another still talks to it
    stop()
