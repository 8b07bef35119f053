"""One training step, timed: samples/s, tokens/s, peak memory and where the time goes.

    python bench/train_step.py                                   # preset tiny, on any machine
    python bench/train_step.py --preset deepseek-ocr --mode base --batch-size 16 --precision bf16
    torchrun --standalone --nproc-per-node 2 bench/train_step.py # per process; gradients reduced

The step is the trainer's own: the same loss, reduction, clipping and optimizer. Weights are random,
at the preset's true size; pages and tokens are random and change with every step. `step` is timed
whole; the split comes from other steps, in which the device is waited for after each part.
"""

import argparse
import time

import torch

from common import environment, finish, median, table
from deepsynth_min import freeze
from deepsynth_min.batch import Batch, visual_tokens
from deepsynth_min.config import PRESETS
from deepsynth_min.distributed import GradientReducer, World, start, stop
from deepsynth_min.metrics import peak_memory
from deepsynth_min.model import DeepseekOCR, parameter_summary
from deepsynth_min.optim import LossScaler, clip_and_step, make_adamw
from deepsynth_min.precision import autocast, set_parameter_types
from deepsynth_min.settings import page_side

PROMPT = 12  # text tokens of the instruction
PARTS = ("encode", "forward", "backward", "reduce", "optimizer")


def random_batch(config, side: int, size: int, answer: int) -> Batch:
    """`size` samples of one page each, with `answer` scored tokens."""
    visual = visual_tokens(side, side)
    T = 1 + visual + PROMPT + answer
    ids = torch.randint(3, config.decoder.vocab_size - 1, (size, T))
    image_mask = torch.zeros(size, T, dtype=torch.bool)
    image_mask[:, 1 : 1 + visual] = True
    labels = ids.clone()
    labels[:, : T - answer] = -100
    pages = torch.randint(0, 256, (size, 1, side, side), dtype=torch.uint8)
    return Batch(ids, torch.ones_like(image_mask), image_mask, labels, pages)


class Step:
    """The trainer's step over random batches."""

    def __init__(self, options, world: World):
        self.options, self.world = options, world
        self.config = PRESETS[options.preset]
        self.side = page_side(options.mode, self.config.page_size)
        torch.manual_seed(0)
        with torch.device(world.device):
            self.model = DeepseekOCR(self.config)
        freeze.freeze(self.model, options.tune)
        set_parameter_types(self.model, options.precision)
        self.optimizer = make_adamw(self.model, (0.9, 0.95), 0.01)
        self.scaler = LossScaler(options.precision == "fp16", world.device)
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.reducer = GradientReducer(world, trainable)
        torch.manual_seed(world.rank)
        self.batches = [
            random_batch(self.config, self.side, options.batch_size, options.answer)
            for _ in range(4)
        ]
        self.done = 0

    def wait(self) -> None:
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)

    def run(self, lap=lambda part: None) -> None:
        """One step; `lap(part)` is called after each part."""
        model, batch = self.model, self.batches[self.done % len(self.batches)]
        batch = batch.to(self.world.device)
        self.done += 1
        with autocast(self.world.device, self.options.precision):
            embedded = model.embed(batch)
            lap("encode")
            loss, count, _ = model.loss_terms(batch, embedded=embedded)
        lap("forward")
        self.reducer.armed = True
        (loss / (count * self.world.size) * self.scaler.scale).backward()
        lap("backward")
        self.reducer.finish()
        lap("reduce")
        clip_and_step(self.optimizer, self.scaler, 1e-4, 1.0)
        self.optimizer.zero_grad(set_to_none=True)
        lap("optimizer")

    def timed(self) -> float:
        self.wait()
        began = time.perf_counter()
        self.run()
        self.wait()
        return time.perf_counter() - began

    def split(self) -> dict[str, float]:
        """Seconds of each part of one step."""
        seconds, last = {}, [time.perf_counter()]

        def lap(part: str) -> None:
            self.wait()
            now = time.perf_counter()
            seconds[part] = now - last[0]
            last[0] = now

        self.wait()
        last[0] = time.perf_counter()
        self.run(lap)
        return seconds


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", choices=PRESETS, default="tiny")
    parser.add_argument("--tune", choices=freeze.TUNED_PARTS, default="decoder")
    parser.add_argument("--mode", default="auto", help="page size, as in training")
    parser.add_argument("--batch-size", type=int, default=8, help="samples per process")
    parser.add_argument("--answer", type=int, default=100, help="scored tokens per sample")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    given = options()
    world = start(given.device, given.threads)
    step = Step(given, world)
    for _ in range(given.warmup):
        step.run()
    whole, splits = [], []
    for _ in range(given.repeats):  # alternating, so that drift of the machine falls on both
        whole.append(step.timed())
        splits.append(step.split())
    seconds = median(whole)
    parts = {part: median([split[part] for split in splits]) for part in PARTS}
    tokens = step.batches[0].tokens
    memory = peak_memory(world.device)
    if world.is_main:
        report(step, given, world, seconds, parts, tokens, memory)
    stop()


def report(step: Step, given, world: World, seconds, parts, tokens, memory) -> None:
    samples = given.batch_size * world.size / seconds
    total, trainable, active = parameter_summary(step.model)[-1][1:]
    cuda = world.device.type == "cuda"
    hardware = torch.cuda.get_device_name(world.device) if cuda else "cpu"
    rows = [
        ("samples/s", f"{samples:.2f}"),
        ("tokens/s", f"{tokens * world.size / seconds:,.0f}"),
        ("step", f"{seconds * 1e3:.1f} ms"),
        *((f"  {part}", f"{value * 1e3:.1f} ms") for part, value in parts.items()),
        ("peak memory per process", f"{memory / 2**20:,.0f} MiB"),
    ]
    print(f"{given.preset}, tune {given.tune}, {step.side} px, batch {given.batch_size}, "
          f"answer {given.answer}, {given.precision}, {world.size} process(es), {hardware}")  # fmt: skip
    print(table(rows, ("median of " + str(given.repeats), "")))
    finish({
        "bench": "train_step", **vars(given), "side": step.side, "processes": world.size,
        "device_name": hardware, "samples_per_s": samples,
        "tokens_per_s": tokens * world.size / seconds, "step_s": seconds,
        "split_s": parts,
        "peak_memory_bytes": memory, "parameters": total, "trainable": trainable,
        "active_per_token": active, "threads": torch.get_num_threads(),
        **environment("torch", "deepsynth-min"),
    })  # fmt: skip


if __name__ == "__main__":
    main()
