"""Kernels on paper become seconds on a GPU, and a step the memory that it needs there.

In: a step that runs inside `on_paper` (pretend.py). Out: a `Paper`: its kernels by part, the bytes
that it holds by kind, the peak of each part; of a `Gpu`, the seconds.

The one idea: a kernel takes the longest of three times: its bytes at the bandwidth that large
kernels reach, its FLOPs at the rate that they reach, the shortest time that a kernel takes at all.
The step is their sum, or the time in which the host can start them, whichever is longer (Williams
et al. 2009, the roofline). It is arithmetic: no fragmentation, no clocks.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .paper import Count, Kernel


@dataclass(frozen=True)
class Gpu:
    """Peaks of a data sheet, dense; and the shares of them that large kernels are taken to reach.

    product and float32: FLOP/s of 16-bit tensor cores, accumulating in float32, and of float32
    without tensor cores (torch's default); memory: bytes/s; size: bytes; host and link: bytes/s
    from the host and to the machine's other GPUs, one way. grouped: whether torch has its grouped
    product there as one kernel (compute capability 9 and 10); elsewhere it reads the row ends back
    and multiplies expert by expert.
    """

    product: float
    float32: float
    memory: float
    size: float
    host: float
    link: float
    of_product: float = 0.55
    of_attention: float = 0.4
    of_memory: float = 0.85
    bf16: bool = True
    grouped: bool = False


# Peaks: NVIDIA's data sheets of H100 SXM, H200 SXM, A100 80 GB SXM, L4 and T4, and the whitepaper
# of the Ada architecture (RTX 4090); those given with sparsity are halved, PCIe and NVLink are one
# way; without NVLink the link is PCIe. The shares are assumptions. H100's are those of the count by
# hand that came first: 525 and 350 TFLOP/s, 3.0 TB/s.
GPUS = {
    "h100": Gpu(989.4e12, 66.9e12, 3.35e12, 80e9, 64e9, 450e9, 0.53, 0.354, 0.896, grouped=True),
    "h200": Gpu(989.4e12, 66.9e12, 4.8e12, 141e9, 64e9, 450e9, 0.53, 0.354, 0.896, grouped=True),
    "a100": Gpu(312e12, 19.5e12, 2.039e12, 80e9, 32e9, 300e9, 0.75, 0.6),
    "l4": Gpu(121e12, 30.3e12, 300e9, 24e9, 32e9, 32e9),
    "t4": Gpu(65e12, 8.1e12, 300e9, 16e9, 16e9, 16e9, bf16=False),
    "rtx4090": Gpu(165.2e12, 82.6e12, 1008e9, 24e9, 32e9, 32e9, 0.8, 0.65),
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


def counted(
    run: Callable,
    count: Count,
    forget: Callable,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Paper:
    """The second step that `run(lap)` takes: the first makes what the optimizer keeps.

    Of several micro-steps the kernels are those of the last; peaks are over all of them, and what
    the forward keeps is what it adds to what it found.
    """
    kernels, peak = {}, {}
    begun = kept = 0  # bytes that the micro-step found; that its forward added

    def lap(part: str) -> None:
        nonlocal begun, kept
        kernels[part] = count.take()
        peak[part] = max(peak.get(part, 0), count.peak)
        count.peak = count.held
        if part == "forward":
            kept = count.held - begun
            forget()  # the end of autocast
        if part == "backward":
            begun = count.held

    run(lambda part: forget() if part == "forward" else None)
    count.take()
    before = begun = count.peak = count.held
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
    return Paper(kernels, held, peak, kept)
