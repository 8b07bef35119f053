"""A training step on paper: what a GPU would need for it, kernel by kernel, on a machine without.

    python bench/roofline.py --preset deepseek-ocr --tune lora --batch-size 16 --precision bf16
    python bench/roofline.py --preset deepseek-ocr --tune lora ... --peer --gpu a100

The trainer's step (train_step.py's `Step`, with its options) runs on the meta device at true size;
deepsynth_min/planning/ counts its kernels: paper.py what they are, roofline.py their time, the
longest of bytes / achieved bandwidth, FLOPs / achieved rate and 2 us; the step is their sum, or the
time in which the host can start them, whichever is longer. The floor: its FLOPs alone. Memory: the
bytes of all tensors that are alive, without fragmentation. With --peer the step of transformers'
class with PEFT too (whole_step.py). With --compile a compiled region counts as one pass over what
enters and leaves it between two products.

This is arithmetic. On a machine with a GPU the step is measured as well and stands beside it.
"""

import argparse
from collections import Counter
from unittest.mock import patch

import torch
import train_step
from common import environment, finish, median, table
from train_step import PARTS, Step

from deepsynth_min.errors import UserError, exit_code
from deepsynth_min.planning.paper import Kernel
from deepsynth_min.planning.pretend import CUDA, on_paper
from deepsynth_min.planning.roofline import GPUS, HOST, Gpu, Paper, counted, launches, seconds
from deepsynth_min.planning.step import with_features
from deepsynth_min.runs.metrics import peak_memory
from deepsynth_min.training.compile import parts_to_compile
from deepsynth_min.training.distributed import World, start


def our_paper(given: argparse.Namespace) -> Paper:
    """The trainer's step."""
    with on_paper() as (count, forget):
        step = Step(_plain(given), World(0, 1, CUDA))
        if given.cached:
            step.batches = with_features(step.model, step.batches)
        if given.compile:
            count.compiled(parts_to_compile(step.model, given.precision))
        return counted(step.run, count, forget, step.model, step.optimizer)


def peer_paper(given: argparse.Namespace) -> Paper:
    """The step of transformers' class, with PEFT; it knows no cached features."""
    from transformers.models.unlimited_ocr import modeling_unlimited_ocr
    from whole_step import PeerStep, our_step

    with (
        on_paper() as (count, forget),
        patch.object(
            # Counts the image tokens by reading them back: left out, to the peer's favour.
            modeling_unlimited_ocr,
            "torch_compilable_check",
            lambda *_: None,
        ),
    ):
        plain = argparse.Namespace(**vars(_plain(given)) | {"pack": False, "grid": (1, 1)})
        step = PeerStep(our_step(plain, World(0, 1, CUDA)), "grouped_mm")
        run = lambda lap: step.run(0, lap)  # noqa: E731
        return counted(run, count, forget, step.model, step.optimizer)


def _plain(given: argparse.Namespace) -> argparse.Namespace:
    """The step's options, without what this file does itself. bitsandbytes' paged optimizer asks
    the device in its step: ours with 8-bit moments is counted in its place."""
    kind = given.optimizer.removeprefix("paged_")
    return argparse.Namespace(
        **vars(given) | {"cached": False, "compile": False, "optimizer": kind}
    )


# -- what is said ---------------------------------------------------------------------------------


def by_operation(paper: Paper, gpu: Gpu, most: int = 14) -> list[tuple]:
    """Rows of the operations that take longest."""
    time, started, size, work = Counter(), Counter(), Counter(), Counter()
    for kernel in paper.all:
        name = kernel.name if kernel.kind != "product" else f"{kernel.name} ({_type(kernel)})"
        time[name] += seconds(kernel, gpu)
        started[name] += launches(kernel, gpu)
        size[name] += kernel.bytes
        work[name] += kernel.flops
    return [
        (name, started[name], _ms(t), f"{size[name] / 1e9:.1f}", f"{work[name] / 1e12:.2f}")
        for name, t in time.most_common(most)
    ]


def _type(kernel: Kernel) -> str:
    return str(kernel.dtype).removeprefix("torch.")


def _ms(time: float) -> str:
    return f"{time * 1e3:.1f} ms"


def _part_rows(paper: Paper, gpu: Gpu, measured: dict[str, float]) -> list[tuple]:
    rows = []
    for part, time in paper.time(gpu).items():
        own = paper.kernels[part]
        size, work = sum(k.bytes for k in own), sum(k.flops for k in own)
        started, peak = sum(launches(k, gpu) for k in own), paper.peak[part]
        seen = _ms(measured[part]) if part in measured else "-"
        row = (part, started, f"{size / 1e9:.1f}", f"{work / 1e12:.2f}", _ms(time), seen)
        rows.append((*row, f"{peak / 1e9:.2f}"))
    return rows


def report(name: str, paper: Paper, gpu: Gpu, measured: dict[str, float]) -> dict:
    """Tables for people; what the last line says."""
    header = ("kernels", "GB", "TFLOP", "on paper", "measured", "peak GB")
    print(table(_part_rows(paper, gpu, measured), (name, *header)) + "\n")
    print(table(by_operation(paper, gpu), ("operation", "kernels", "time", "GB", "TFLOP")))
    started = paper.launches(gpu)
    device, host = sum(paper.time(gpu).values()), HOST * started
    peak = max(paper.peak.values())
    print(
        f"\n{_ms(device)} on the device, {_ms(host)} on the host for {started} kernels; "
        f"FLOPs alone {_ms(paper.floor(gpu))}\nGB: "
        + ", ".join(f"{what} {size / 1e9:.2f}" for what, size in paper.held.items())
        + f", kept activations {paper.activations / 1e9:.2f}; peak {peak / 1e9:.2f} "
        f"of {gpu.size / 1e9:.0f}\n"
    )
    return {
        "parts": {
            p: {"kernels": len(paper.kernels[p]), "s": t} for p, t in paper.time(gpu).items()
        },
        "launches": started,
        "device_s": device,
        "host_s": host,
        "floor_s": paper.floor(gpu),
        "held": paper.held | {"activations": paper.activations, "peak": peak},
    }


def measured_step(given: argparse.Namespace) -> dict[str, float]:
    """Seconds of each part on this machine's GPU; empty without one."""
    if not torch.cuda.is_available():
        return {}
    step = Step(given, start(given.device, given.threads))
    for _ in range(given.warmup):
        step.run()
    splits = [step.split() for _ in range(given.repeats)]
    print(f"measured: peak {peak_memory(step.world.device) / 1e9:.2f} GB")
    return {part: median([split[part] for split in splits]) for part in PARTS}


def run(arguments: list[str] | None = None) -> None:
    parser = train_step.parser(__doc__.splitlines()[0])
    parser.set_defaults(preset="deepseek-ocr", precision="bf16", batch_size=16, tune="lora")
    parser.add_argument("--gpu", choices=GPUS, default="h100", help="on paper")
    parser.add_argument("--peer", action="store_true", help="transformers' class with PEFT too")
    given = parser.parse_args(arguments)
    gpu = GPUS[given.gpu]
    if given.precision == "bf16" and not gpu.bf16:
        raise UserError(f"--gpu {given.gpu}: computes no bf16; use --precision fp16")
    if given.peer and given.tune not in ("decoder", "lora"):
        raise UserError(f"--peer: for --tune decoder and lora, not {given.tune}")
    ours = our_paper(given)
    results = {"deepsynth_min": report("ours", ours, gpu, measured_step(given))}
    if not gpu.grouped:
        print("torch has no grouped product here: it reads back and multiplies expert by expert\n")
    if given.peer:
        theirs = peer_paper(given)
        results["transformers"] = report("transformers", theirs, gpu, {})
        results["ratio"] = theirs.step(gpu) / ours.step(gpu)
        print(f"transformers' step takes {results['ratio']:.2f} times as long\n")
    finish({"bench": "roofline", **vars(given), **results, **environment("torch", "transformers")})


if __name__ == "__main__":
    raise SystemExit(exit_code(run, None))
