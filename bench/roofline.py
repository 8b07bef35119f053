"""A training step on paper: what a GPU would need for it, kernel by kernel, on a machine without.

    python bench/roofline.py --preset deepseek-ocr --tune lora --batch-size 16 --precision bf16
    python bench/roofline.py --preset deepseek-ocr --tune lora ... --peer --gpu a100

The trainer's step (train_step.py's `Step`, with its options) runs on the meta device at true size;
paper.py counts its kernels. A kernel takes max(bytes / achieved bandwidth, FLOPs / achieved rate,
2 us); the step is their sum, or the time in which the host can start them, whichever is longer. The
floor: its FLOPs alone. Memory: the bytes of all tensors that are alive, without fragmentation.
With --peer the step of transformers' class with PEFT too (whole_step.py). With --compile a compiled
region counts as one pass over what enters and leaves it between two products.

This is arithmetic. On a machine with a GPU the step is measured as well and stands beside it.
"""

import argparse
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
import train_step
from common import environment, finish, median, table
from paper import Count, Kernel
from pretend import CUDA, on_paper
from train_step import PARTS, Step

from deepsynth_min.errors import UserError, exit_code
from deepsynth_min.runs.metrics import peak_memory
from deepsynth_min.training.compile import parts_to_compile
from deepsynth_min.training.distributed import World, start


@dataclass(frozen=True)
class Gpu:
    """Peaks of a data sheet, dense; and the shares of them that large kernels are taken to reach.

    product and float32: FLOP/s of 16-bit tensor cores, accumulating in float32, and of float32
    without tensor cores (torch's default); memory: bytes/s; size: bytes; host: bytes/s from the
    host, one way. grouped: whether torch has its grouped product there as one kernel (compute
    capability 9 and 10); elsewhere it reads the row ends back and multiplies expert by expert.
    """

    product: float
    float32: float
    memory: float
    size: float
    host: float
    of_product: float = 0.55
    of_attention: float = 0.4
    of_memory: float = 0.85
    bf16: bool = True
    grouped: bool = False


# Peaks: NVIDIA's data sheets of H100 SXM, H200 SXM, A100 80 GB SXM, L4 and T4, and the whitepaper
# of the Ada architecture (RTX 4090); those given with sparsity are halved, PCIe is one way. The
# shares are assumptions. H100's are those of the count by hand that came first: 525 and 350
# TFLOP/s, 3.0 TB/s.
GPUS = {
    "h100": Gpu(989.4e12, 66.9e12, 3.35e12, 80e9, 64e9, 0.53, 0.354, 0.896, grouped=True),
    "h200": Gpu(989.4e12, 66.9e12, 4.8e12, 141e9, 64e9, 0.53, 0.354, 0.896, grouped=True),
    "a100": Gpu(312e12, 19.5e12, 2.039e12, 80e9, 32e9, 0.75, 0.6),
    "l4": Gpu(121e12, 30.3e12, 300e9, 24e9, 32e9),
    "t4": Gpu(65e12, 8.1e12, 300e9, 16e9, 16e9, bf16=False),
    "rtx4090": Gpu(165.2e12, 82.6e12, 1008e9, 24e9, 32e9, 0.8, 0.65),
}
LAUNCH = 2e-6  # s, the shortest kernel, with the gap to the next
HOST = 6e-6  # s, what the host takes to start one in eager mode: Python, dispatch, launch


def seconds(kernel: Kernel, gpu: Gpu) -> float:
    """The kernel's time on paper."""
    if kernel.kind == "transfer":
        return kernel.bytes / gpu.host
    peak = gpu.float32 if kernel.dtype == torch.float32 else gpu.product
    rate = peak * (gpu.of_attention if kernel.kind == "attention" else gpu.of_product)
    rate *= kernel.share
    by_memory = kernel.bytes / (gpu.memory * gpu.of_memory)
    return max(by_memory, kernel.flops / rate, LAUNCH * launches(kernel, gpu))


def launches(kernel: Kernel, gpu: Gpu) -> int:
    return kernel.launches * (1 if gpu.grouped else kernel.groups)


@dataclass
class Paper:
    """What a step came to: kernels by part, bytes held by kind, peak bytes by part."""

    kernels: dict[str, list[Kernel]]
    held: dict[str, int]
    peak: dict[str, int]
    activations: int  # kept for the backward pass

    def time(self, gpu: Gpu) -> dict[str, float]:
        """Seconds of each part on the device."""
        return {part: sum(seconds(k, gpu) for k in own) for part, own in self.kernels.items()}

    @property
    def all(self) -> list[Kernel]:
        return [kernel for own in self.kernels.values() for kernel in own]

    def launches(self, gpu: Gpu) -> int:
        return sum(launches(kernel, gpu) for kernel in self.all)

    def floor(self, gpu: Gpu) -> float:
        """Seconds of the FLOPs alone, by the rate of products."""
        return sum(kernel.flops for kernel in self.all) / (gpu.product * gpu.of_product)

    def step(self, gpu: Gpu) -> float:
        """Seconds of the step: the device's, or the host's if it cannot start kernels as fast."""
        return max(sum(self.time(gpu).values()), HOST * self.launches(gpu))


def _counted(run: Callable, count: Count, forget: Callable, model, optimizer) -> Paper:
    """The second step that `run(lap)` takes: the first makes what the optimizer keeps."""
    kernels, peak, kept = {}, {}, {}

    def lap(part: str) -> None:
        kernels[part], peak[part], kept[part] = count.take(), count.peak, count.held
        count.peak = count.held
        if part == "forward":
            forget()  # the end of autocast

    run(lambda part: forget() if part == "forward" else None)
    count.take()
    before, count.peak = count.held, count.held
    run(lap)
    tensors = [*model.parameters(), *model.buffers()]
    trained = [p for p in model.parameters() if p.requires_grad]
    state = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    held = {
        "weights": sum(t.nbytes for t in tensors),
        "gradients": sum(p.nbytes for p in trained),
        "moments": sum(t.nbytes for t in state),
    }
    others = before - held["weights"] - held["moments"]  # what is alive beside the step
    peak = {part: most - others for part, most in peak.items()}
    return Paper(kernels, held, peak, kept["forward"] - before)


def our_paper(given: argparse.Namespace) -> Paper:
    """The trainer's step."""
    with on_paper() as (count, forget):
        step = Step(_plain(given), World(0, 1, CUDA))
        if given.cached:
            _know_features(step)
        if given.compile:
            count.compiled(parts_to_compile(step.model, given.precision))
        return _counted(step.run, count, forget, step.model, step.optimizer)


def peer_paper(given: argparse.Namespace) -> Paper:
    """The step of transformers' class, with PEFT; it knows no cached features."""
    import peers
    from whole_step import PeerStep, our_step

    with (
        on_paper() as (count, forget),
        patch.object(
            # Counts the image tokens by reading them back: left out, to the peer's favour.
            peers.unlimited,
            "torch_compilable_check",
            lambda *_: None,
        ),
    ):
        plain = argparse.Namespace(**vars(_plain(given)) | {"pack": False, "grid": (1, 1)})
        step = PeerStep(our_step(plain, World(0, 1, CUDA)), "grouped_mm")
        run = lambda lap: step.run(0, lap)  # noqa: E731
        return _counted(run, count, forget, step.model, step.optimizer)


def _plain(given: argparse.Namespace) -> argparse.Namespace:
    """The step's options, without what this file does itself."""
    return argparse.Namespace(**vars(given) | {"cached": False, "compile": False})


def _know_features(step: Step) -> None:
    """As --feature-cache would find them: on the host, in the encoder's type."""
    dtype, width = step.model.model.sam_model.pos_embed.dtype, step.config.feature_width

    def known(pages):
        if pages is None:
            return None
        h, w = pages.shape[2] // 64, pages.shape[3] // 64
        return torch.zeros(len(pages), h, w, width, dtype=dtype)

    step.batches = [
        replace(b, features=known(b.pages), tile_features=known(b.tiles)) for b in step.batches
    ]


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
