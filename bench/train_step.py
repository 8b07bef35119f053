"""One training step, timed: samples/s, utilisation, peak memory and where the time goes.

    python bench/train_step.py                                   # preset tiny, on any machine
    python bench/train_step.py --preset deepseek-ocr --mode base --batch-size 16 --precision bf16
    torchrun --standalone --nproc-per-node 2 bench/train_step.py # per process; gradients reduced

The step is the trainer's own: the same loss, reduction, clipping and optimizer. Weights are random,
at the preset's true size; pages and tokens are random and change with every step. `step` is timed
whole; the split comes from other steps, in which the device is waited for after each part, and
begins with the wait for the batch on the device. Model FLOP utilisation is the step's FLOPs by
formula (model/shape/flops.py) over the rate of a large square product, measured in the same run.

Peak memory per process: on a GPU what the step allocated at most, weights included, once it was
built, and what was reserved; on a CPU resident memory, libraries included.
"""

import argparse
import time
from dataclasses import replace

import torch
from common import SIZES, environment, finish, interleaved, median, product_rate, table, wait

from deepsynth_min.model import Batch
from deepsynth_min.model.batch import visual_tokens
from deepsynth_min.model.deepseek_ocr import parameter_summary
from deepsynth_min.options import change
from deepsynth_min.pages.modes import page_side
from deepsynth_min.planning import step as planning
from deepsynth_min.planning.step import PARTS
from deepsynth_min.runs.metrics import peak_memory
from deepsynth_min.runs.utilisation import adapters_of, batch_flops
from deepsynth_min.settings import Settings
from deepsynth_min.training.distributed import World, start, stop
from deepsynth_min.training.precision import autocast
from deepsynth_min.tuning import freeze

PROMPT = 12  # text tokens of the instruction


def random_batch(config, side: int, size: int, answer: int, grid: tuple = (1, 1)) -> Batch:
    """`size` samples of one page each, cut into a grid (w, h) of tiles, with `answer` scored
    tokens."""
    newlines = config.page_format.newlines
    tile, tiles = min(config.page_format.tile, side), grid[0] * grid[1] if grid != (1, 1) else 0
    visual = visual_tokens(side, side, grid, tile, newlines)
    T = 1 + visual + PROMPT + answer
    ids = torch.randint(3, config.decoder.vocab_size - 1, (size, T))
    image_mask = torch.zeros(size, T, dtype=torch.bool)
    image_mask[:, 1 : 1 + visual] = True
    labels = ids.clone()
    labels[:, : T - answer] = -100
    pages = torch.randint(0, 256, (size, 1, side, side), dtype=torch.uint8)
    real, cut = torch.ones_like(image_mask), {}
    if tiles:
        cut["tiles"] = torch.randint(0, 256, (size * tiles, 1, tile, tile), dtype=torch.uint8)
        cut["grids"] = torch.tensor([grid] * size)
    return Batch(ids, real, image_mask, labels, pages, newlines=newlines, **cut)


def settings_of(options) -> Settings:
    """The options of a bench as those of a training."""
    same = "tune precision weights optimizer checkpoint_layers flex compile".split()
    rank = {"lora_rank": options.rank, "lora_alpha": 2.0 * options.rank}
    given = {name: getattr(options, name) for name in same}
    return change(Settings(), **given, **rank, lora_targets=("attention+mlp",))


class Step(planning.Step):
    """The trainer's step over random batches."""

    def __init__(self, options, world: World):
        self.options = options
        config = SIZES[options.preset].with_attention(options.attention_window)
        self.side = page_side(options.mode, config.page_format)
        torch.manual_seed(world.rank)
        batches = [
            random_batch(config, self.side, options.batch_size, options.answer, options.grid)
            for _ in range(4)
        ]
        if options.pack:
            batches = [batch.packed() for batch in batches]
        super().__init__(config, settings_of(options), world, batches)
        if options.cached:
            self._fill_cache()
        if world.device.type == "cuda" and torch.cuda.is_available():  # not on paper
            self.batches = [batch.pinned() for batch in self.batches]  # as training's are

    def _fill_cache(self) -> None:
        """What --feature-cache would find: the features of every page, on the CPU."""
        if self.model.encoder_trains:
            return
        device, precision = self.world.device, self.options.precision
        for i, batch in enumerate(self.batches):
            with torch.no_grad(), autocast(device, precision):
                features = self.model.page_features(batch.pages.to(device))
            self.batches[i] = replace(batch, features=features.cpu())

    def wait(self) -> None:
        wait(self.world.device)

    def timed(self) -> float:
        self.wait()
        began = time.perf_counter()
        self.run()
        self.wait()
        return time.perf_counter() - began

    def split(self) -> dict[str, float]:
        """Seconds of each part of one step."""
        seconds, last = {}, [0.0]

        def lap(part: str) -> None:
            self.wait()
            now = time.perf_counter()
            seconds[part] = now - last[0]
            last[0] = now

        self.wait()
        last[0] = time.perf_counter()
        self.run(lap)
        return seconds

    def flops(self) -> int:
        """Of one step of this process, by formula."""
        given, batch = self.options, self.batches[0]
        adapters, encoded = adapters_of(self.model), {} if given.cached else None
        return batch_flops(self.config, given.tune, batch, adapters, encoded)


def grid(text: str) -> tuple[int, int]:
    """WxH as in `--grid 2x3`."""
    w, h = text.split("x")
    return int(w), int(h)


def parser(description: str) -> argparse.ArgumentParser:
    """The options of a step, for every bench that takes one."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--preset", choices=SIZES, default="tiny")
    add("--tune", choices=freeze.TUNED_PARTS, default="decoder")
    add("--rank", type=int, default=16, help="of adapters, on attention+mlp")
    add("--mode", default="auto", help="page size, as in training")
    add("--batch-size", type=int, default=8, help="samples per process")
    add("--answer", type=int, default=100, help="scored tokens per sample")
    add("--grid", type=grid, default=(1, 1), help="tiles of each page, WxH (gundam)")
    add("--pack", action="store_true", help="samples one after another, as in training")
    add("--attention-window", type=int, default=0, help="as in training")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    add("--weights", choices=("fp32", "bf16"), default="fp32", help="of what trains")
    add("--optimizer", choices=("adamw", "adamw8bit", "paged_adamw8bit"), default="adamw")
    add("--checkpoint-layers", type=int, default=0, help="as in training")
    add("--compile", action="store_true", help="as in training")
    add("--flex", action=argparse.BooleanOptionalAction, default=True, help="as in training")
    add("--cached", action="store_true", help="the encoder's features are known already")
    add("--repeats", type=int, default=9)
    add("--warmup", type=int, default=3)
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    return parser


def measure(given, world: World) -> tuple[Step, dict]:
    """Builds the step, and takes it `--warmup` and `--repeats` times; the latter are timed."""
    step = Step(given, world)
    cuda = world.device.type == "cuda"
    if cuda:  # what building it took at most is not the step's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(max(1, given.warmup)):
        step.run()
    peak, reserved = peak_memory(world.device), torch.cuda.max_memory_reserved() if cuda else None
    whole, splits, rates = [], [], []
    side, dtype = (8192, torch.bfloat16) if cuda else (2048, torch.float32)
    if given.precision == "bf16":
        dtype = torch.bfloat16
    product = {"product": product_rate(world.device, dtype, side)}
    for _ in range(given.repeats):  # alternating, so that drift of the machine falls on all
        whole.append(step.timed())
        splits.append(step.split())
        rates += interleaved(product, 1, world.device)["product"]
    return step, {
        "step_s": median(whole),
        "product_rate": 2 * side**3 / median(rates),
        "split_s": {part: median([split[part] for split in splits]) for part in PARTS},
        "peak_memory_bytes": peak,
        "reserved_bytes": reserved,
    }


def main() -> None:
    given = parser(__doc__.splitlines()[0]).parse_args()
    world = start(given.device, given.threads)
    step, measured = measure(given, world)
    if world.is_main:
        report(step, given, world, measured)
    stop()


def report(step: Step, given, world: World, measured: dict) -> None:
    seconds, batch = measured["step_s"], step.batches[0]
    samples, tokens = given.batch_size * world.size / seconds, batch.tokens * world.size / seconds
    total, trainable, active = parameter_summary(step.model)[-1][1:]
    hardware = torch.cuda.get_device_name() if world.device.type == "cuda" else "cpu"
    utilisation = step.flops() / seconds / measured["product_rate"]
    mib = lambda number: "" if number is None else f"{number / 2**20:,.0f} MiB"  # noqa: E731
    rows = [
        ("samples/s", f"{samples:.2f}"),
        ("tokens/s", f"{tokens:,.0f}"),
        ("model FLOPs of a step", f"{step.flops() / 1e9:,.1f} GFLOP"),
        ("rate of a square product", f"{measured['product_rate'] / 1e9:,.0f} GFLOP/s"),
        ("model FLOP utilisation", f"{utilisation:.1%}"),
        ("step", f"{seconds * 1e3:.1f} ms"),
        *((f"  {part}", f"{t * 1e3:.1f} ms") for part, t in measured["split_s"].items()),
        ("peak memory per process", mib(measured["peak_memory_bytes"])),
        ("  reserved", mib(measured["reserved_bytes"])),
    ]
    print(
        f"{given.preset}, tune {given.tune}, {step.side} px, batch {given.batch_size}, "
        f"answer {given.answer}, {given.precision}, {world.size} process(es), "
        f"{hardware}"
    )
    print(table(rows, ("median of " + str(given.repeats), "")))
    finish(
        {
            "bench": "train_step",
            **vars(given),
            "side": step.side,
            "processes": world.size,
            "device_name": hardware,
            "samples_per_s": samples,
            "tokens_per_s": tokens,
            **measured,
            "flops": step.flops(),
            "utilisation": utilisation,
            "parameters": total,
            "trainable": trainable,
            "active_per_token": active,
            "threads": torch.get_num_threads(),
            **environment("torch", "deepsynth-min"),
        }
    )


if __name__ == "__main__":
    main()
