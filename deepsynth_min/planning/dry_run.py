"""`train --dry-run`: what a run would be, before anything is rented, loaded or written.

In: settings and what is asked of the dry run (command_line.py). Out: lines for people: rows, tokens
and steps; memory per GPU by part, and whether it fits; of a named GPU the time and, with a price,
the cost of an epoch; what would make it fit, or faster.

The one idea: data and settings are read and checked as in training, the step is run on paper
(plan.py), and what is counted is said to be counted. No price is known here: they change.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ..command_line import DryRun
from ..data.order import rows_per_epoch
from ..data.samples import SampleBuilder
from ..data.sources import open_data, pinned
from ..data.tokenizer import load_tokenizer
from ..errors import UserError, number_of
from ..model.shape.config import ModelConfig
from ..model.shape.presets import find_shape
from ..options import change
from ..runs.setup import CHECKS
from ..settings import Settings
from ..training.build import is_adapted, resolve
from ..training.distributed import World
from .load import Load, measure
from .plan import USABLE, Plan, make
from .pretend import CUDA
from .roofline import GPUS, Gpu

MACHINE = 8  # GPUs of one machine: the network between several is not counted


@dataclass(frozen=True)
class Outlook:
    """What is known of a run: its data, its step over the heaviest micro-batch and a usual one."""

    config: ModelConfig
    settings: Settings
    load: Load
    heavy: Plan
    usual: Plan


def check(asked: DryRun, settings: Settings) -> Gpu | None:
    """The GPU that is asked about. Raises UserError for what cannot be counted."""
    if asked.gpus < 1:
        raise UserError(f"--gpus {asked.gpus}: is below 1")
    if asked.gpu_price < 0:
        raise UserError(f"--gpu-price {asked.gpu_price:g}: is below 0")
    if asked.gpu_price and not asked.gpu:
        raise UserError("--gpu-price: of which GPU? give --gpu")
    if asked.gpu and asked.gpu not in GPUS:
        raise UserError(f"--gpu {asked.gpu}: known are {', '.join(GPUS)}")
    gpu = GPUS.get(asked.gpu)
    if asked.gpu and settings.run.device == "cpu":
        raise UserError(f"--gpu {asked.gpu}: not with --device cpu")
    if gpu and settings.optim.precision == "bf16" and not gpu.bf16:
        raise UserError(f"--gpu {asked.gpu}: computes no bf16; give --precision fp16")
    if settings.adapter.adapter:
        raise UserError(
            f"--adapter {settings.adapter.adapter}: a dry run reads no weights; give its rank "
            "with --lora-rank and its modules with --lora-targets instead"
        )
    for setting_check in CHECKS:
        setting_check(settings)
    return gpu


def look(settings: Settings, gpus: int) -> Outlook:
    """Reads the data, counts the step. Raises UserError for what stops a run at its start."""
    config, directory = find_shape(settings.model)
    settings = replace(settings, data=pinned(settings.data))
    data = open_data(settings.data, settings.optim.seed)
    settings = resolve(settings, rows_per_epoch(data.train), _world(settings, gpus))
    builder = SampleBuilder(settings, config, load_tokenizer(directory))
    load = measure(data, builder, settings)
    heavy = make(config, settings, load.heaviest(settings), gpus)
    return Outlook(config, settings, load, heavy, make(config, settings, load.usual, gpus))


def _world(settings: Settings, gpus: int) -> World:
    """That of the first process."""
    return World(0, gpus, torch.device("cpu") if settings.run.device == "cpu" else CUDA)


def dry_run(settings: Settings, asked: DryRun) -> None:
    """Prints everything. Raises UserError."""
    gpu = check(asked, settings)
    print("dry run: nothing is written, no weights are read; figures are computed, not measured\n")
    outlook = look(settings, asked.gpus)
    for line in data_lines(outlook, asked.gpus):
        print(line)
    print()
    for line in memory_lines(outlook.heavy, asked, gpu):
        print(line)
    if gpu is None and settings.run.device != "cpu":
        print(
            "\n--gpu NAME says whether that fits, and how long an epoch takes: " + ", ".join(GPUS)
        )
    if gpu is None:
        return
    print()
    for line in time_lines(outlook, asked, gpu):
        print(line)
    print()
    for line in changed_lines(outlook, asked, gpu):
        print(line)


# -- what the run is ------------------------------------------------------------------------------


def data_lines(outlook: Outlook, gpus: int) -> Iterator[str]:
    load, settings, optim = outlook.load, outlook.settings, outlook.settings.optim
    each = optim.batch_size * optim.accumulate * gpus
    epochs = optim.max_steps * each / load.rows
    measured = "" if load.drawn == load.rows else f", from {load.drawn} of them"
    yield (
        f"{settings.model.model} on {', '.join(settings.data.data)}: "
        f"{number_of(load.rows, 'row')} in an epoch, {load.held_out:,} held out"
    )
    yield (
        f"a row{measured}: {load.pages:.2f} pages, {load.visual:,.0f} visual tokens, "
        f"{load.answer:,.0f} scored, {load.length:,.0f} in all"
    )
    yield (
        f"{number_of(optim.max_steps, 'step')} of {number_of(each, 'sample')} ({gpus} x "
        f"--batch-size {optim.batch_size} x --accumulate {optim.accumulate}): {epochs:.3g} x "
        f"the rows, {optim.max_steps * each * load.length / 1e6:,.3g} million tokens"
    )


def gb(size: float) -> str:
    return f"{size / 1e9:,.2f}" if size >= 1e8 else f"{size / 1e9:,.4f}"


def memory_lines(heavy: Plan, asked: DryRun, gpu: Gpu | None) -> Iterator[str]:
    """Of the heaviest micro-batch; parts are not all there at the same time."""
    name = f", {asked.gpu}" if asked.gpu else ""
    where = "of a process" if heavy.settings.run.device == "cpu" else f"per GPU{name}"
    yield f"memory {where}, GB of 10^9 bytes, with the heaviest micro-batch"
    held, (part, _) = heavy.paper.held, max(heavy.paper.peak.items(), key=lambda item: item[1])
    rows = {
        "weights": held["weights"],
        "gradients": held["gradients"],
        "moments": held["moments"],
        "kept activations": heavy.paper.activations,
        "logits": heavy.logits,
        f"peak, in {part}": heavy.peak,
    }
    for what, size in rows.items():
        yield f"  {what:<20}{gb(size):>10}"
    if gpu is not None:
        verdict = "fits" if heavy.fits(gpu) else "does not fit"
        yield (
            f"  {verdict}: {heavy.peak / gpu.size:.0%} of {gpu.size / 1e9:.0f} GB, of which "
            f"{USABLE:.0%} are taken to be usable"
        )
    if heavy.settings.optim.shard and heavy.processes > 1:
        yield "  of --shard by formula; each evaluation needs memory for the whole model besides"


# -- how long it takes ----------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """45 s, 12.5 min, 3.4 h."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.3g} s"


def epoch_seconds(outlook: Outlook, step: float, gpus: int) -> float:
    optim = outlook.settings.optim
    return step * outlook.load.rows / (optim.batch_size * optim.accumulate * gpus)


def time_lines(outlook: Outlook, asked: DryRun, gpu: Gpu) -> Iterator[str]:
    usual, optim, gpus = outlook.usual, outlook.settings.optim, asked.gpus
    step = usual.step(gpu)
    epoch, run = epoch_seconds(outlook, step, gpus), step * optim.max_steps
    parts = ", ".join(f"{part} {t * 1e3:.3g}" for part, t in usual.paper.time(gpu).items() if t)
    yield f"a step: {step * 1e3:.3g} ms (a micro-step's kernels, ms: {parts})"
    if gpus > 1:
        sending = usual.sending(gpu)
        yield (
            f"  each GPU sends {usual.sent / 1e9:.3g} GB, {sending * 1e3:.3g} ms, while it computes"
        )
        if gpus > MACHINE:
            yield f"  as within one machine: a network between those of {MACHINE} is not counted"
    cost = ""
    if asked.gpu_price:
        price = asked.gpu_price * gpus / 3600
        cost = f", {epoch * price:,.2f} an epoch and {run * price:,.2f} for the run at that price"
    yield f"an epoch: {duration(epoch)}; the run's steps: {duration(run)}{cost}"
    yield "evaluations, checkpoints, loading and compiling come on top; so does waiting for pages"


# -- what would help ------------------------------------------------------------------------------


def candidates(
    settings: Settings, layers: int, gpu: Gpu, gpus: int, fits: bool
) -> list[tuple[str, dict]]:
    """(in words, settings) of what is worth a try: to fit first of all, else to be faster.

    layers: of the decoder.
    """
    optim, tune = settings.optim, settings.model.tune
    found: list[tuple[str, dict]] = []
    if optim.precision == "fp32":
        half = "bf16" if gpu.bf16 else "fp16"
        found.append((f"--precision {half}", {"precision": half}))
    if fits:
        if not optim.compile and not optim.shard:
            found.append(("--compile", {"compile": True}))
        return found
    if optim.batch_size > 1 and optim.batch_size % 2 == 0:
        size, micro = optim.batch_size // 2, optim.accumulate * 2
        words = f"--batch-size {size} --accumulate {micro}"
        found.append((words, {"batch_size": size, "accumulate": micro}))
    if not optim.checkpoint_layers:
        found.append((f"--checkpoint-layers {layers}", {"checkpoint_layers": layers}))
    if gpus > 1 and not optim.shard and "qlora" not in tune and optim.optimizer == "adamw":
        found.append(("--shard", {"shard": True}))
    if not is_adapted(tune):
        if optim.optimizer == "adamw" and not optim.shard and optim.weights == "fp32":
            small = {"optimizer": "adamw8bit"}
            found.append(("--optimizer adamw8bit", small))
            if optim.precision == "bf16":
                both = "--weights bf16 --optimizer adamw8bit"
                found.append((both, small | {"weights": "bf16"}))
        found.append(("--tune lora", {"tune": "lora"}))
    if "qlora" not in tune and not optim.shard:
        found.append(("--tune qlora", {"tune": "qlora"}))
    return found


def changed_lines(outlook: Outlook, asked: DryRun, gpu: Gpu) -> Iterator[str]:
    """What some changes, each alone, would do: to the peak, and to an epoch's time."""
    settings, gpus = outlook.settings, asked.gpus
    rows = []
    usual = epoch_seconds(outlook, outlook.usual.step(gpu), gpus)
    share = outlook.usual.step(gpu) / outlook.heavy.step(gpu)
    fits = outlook.heavy.fits(gpu)
    layers = outlook.config.decoder.num_hidden_layers
    for words, changes in candidates(settings, layers, gpu, gpus, fits):
        other = resolve(change(settings, **changes), outlook.load.rows, _world(settings, gpus))
        plan = make(outlook.config, other, outlook.load.heaviest(other), gpus)
        rows.append((words, plan, epoch_seconds(outlook, plan.step(gpu) * share, gpus)))
    if fits and not outlook.heavy.encoder_trains:
        plan = make(outlook.config, settings, outlook.load.heaviest(settings), gpus, cached=True)
        words = "--feature-cache, from the second epoch on"
        rows.append((words, plan, epoch_seconds(outlook, plan.step(gpu) * share, gpus)))
    yield f"with one change{'':<28}{'peak GB':>10}{'':>10}{'epoch':>12}{'of it':>8}"
    for words, plan, epoch in rows:
        verdict = "fits" if plan.fits(gpu) else "too much"
        yield (
            f"  {words:<41}{gb(plan.peak):>10}{verdict:>10}{duration(epoch):>12}"
            f"{epoch / usual:>8.0%}"
        )
