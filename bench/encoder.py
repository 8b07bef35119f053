"""The encoder's forward against transformers' SAM and CLIP, and against two ways to write the bias.

    python bench/encoder.py                                   # true size, one page of 1024 px
    python bench/encoder.py --preset deepseek-ocr --precision bf16 --pages 16       # on a GPU

Contenders, all with the same weights, checked to give the same features:
- deepsynth_min: the relative position bias as extra columns of queries and keys; on a CPU as a mask
  for a few rows at a time;
- transformers: `deepseek_ocr2`'s SAM and `clip`'s transformer, which write the bias as a mask;
- official: the formulation of the official code (after Kirillov et al. 2023): queries times keys,
  the bias [heads, P, P] added, softmax, times values, each an array of its own; for its memory;
- flex: ours with the bias looked up in a compiled kernel (`attend_by_score`; only with --flex).

Peak memory is taken in a process per contender: what a forward needs above what was held before it.
"""

import argparse
import json

import torch
import torch.nn.functional as F
from common import (
    SIZES,
    child,
    environment,
    finish,
    interleaved,
    median,
    product_rate,
    resident,
    table,
)
from torch import Tensor, nn

from deepsynth_min.model import DeepseekOCR
from deepsynth_min.model.encoders import sam_clip as encoder
from deepsynth_min.model.shape import flops
from deepsynth_min.pages.modes import page_side
from deepsynth_min.training.distributed import start

CONTENDERS = ("deepsynth_min", "transformers", "official")


def _parts(attention: encoder.SamAttention, x: Tensor):
    """q, k, v [N, H, P, d] and the two halves of the bias [N, H, h, w, h or w]."""
    n, h, w, width = x.shape
    d = width // attention.heads
    qkv = attention.qkv(x).view(n, h * w, 3, attention.heads, d).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    grid = q.reshape(n, attention.heads, h, w, d)
    return q, k, v, *attention.axis_biases(grid)


class OfficialAttention(nn.Module):
    """SAM's attention as the official code has it: the reference implementation, nothing fused."""

    def __init__(self, ours: encoder.SamAttention):
        super().__init__()
        self.ours = ours

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, width = x.shape
        q, k, v, bias_h, bias_w = _parts(self.ours, x)
        bias = bias_h[..., :, None] + bias_w[..., None, :]  # [N, H, h, w, h, w]
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [N, H, P, P]
        scores = (scores + bias.reshape(scores.shape)).softmax(-1, dtype=torch.float32).to(q.dtype)
        return self.ours.proj((scores @ v).transpose(1, 2).reshape(n, h, w, width))


class Ours(nn.Module):
    """Our encoder, with its own attention, with that in one compiled kernel, or with the official
    formulation of it."""

    def __init__(self, model: DeepseekOCR, form: str):
        super().__init__()
        self.sam, self.clip = model.model.sam_model, model.model.vision_model
        for block in self.sam.blocks:
            block.attn.by_score = form == "flex"
            if form == "official":
                block.attn = OfficialAttention(block.attn)

    def forward(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        sam = self.sam(pages)
        return sam, self.clip(sam)


def build(name: str, given, device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    with torch.device("meta"):
        model = DeepseekOCR(SIZES[given.preset])
    trunk = model.model  # the encoder alone: the decoder stays on the meta device
    for part in (trunk.sam_model, trunk.vision_model):
        part.to_empty(device=device)
        for parameter in part.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            nn.init.normal_(parameter, std=0.02 if fan_in == 1 else fan_in**-0.5)
    for module in [m for part in (trunk.sam_model, trunk.vision_model) for m in part.modules()]:
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    for part in (trunk.sam_model, trunk.vision_model):
        part.to(dtype).requires_grad_(False)
    if name == "transformers":
        import peers

        return peers.peer_encoder(model)
    return Ours(model, name)


def random_pages(given, device: torch.device) -> list[Tensor]:
    side = page_side(given.mode, SIZES[given.preset].page_format)
    dtype = torch.bfloat16 if given.precision == "bf16" else torch.float32
    size = (given.pages, 3, side, side)
    return [torch.rand(size, device=device, dtype=dtype) * 2 - 1 for _ in range(4)]


@torch.no_grad()
def peak(given, name: str) -> dict:
    """Bytes of weights, and what a forward needs at most beyond what was held before."""
    device = start(given.device, given.threads).device
    module, pages = build(name, given, device), random_pages(given, device)[0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        module(pages)
        top = torch.cuda.max_memory_allocated()
    else:
        F.linear(torch.ones(1, 8), torch.ones(8, 8))  # libraries that are loaded at first use
        before = resident("VmRSS")
        module(pages)
        top = resident("VmHWM")
    return {"weights": sum(p.nbytes for p in module.parameters()), "peak": top - before}


def check_equal(modules: dict[str, nn.Module], pages: Tensor, tolerance: float) -> None:
    """Raises AssertionError unless all give the same features."""
    ours = modules["deepsynth_min"](pages)
    for name, module in modules.items():
        for a, b in zip(ours, module(pages)):
            error = ((a - b).norm() / a.norm()).item()
            assert error < tolerance, f"{name} computes something else: {error:.1e} apart"


@torch.no_grad()
def timed(given, device: torch.device, names: tuple) -> tuple[dict[str, float], float]:
    """(seconds of each forward, of equal features; FLOP/s of a square product)."""
    modules = {name: build(name, given, device) for name in names}
    pages = random_pages(given, device)
    check_equal(modules, pages[0], 1e-4 if given.precision == "fp32" else 5e-2)
    work = {
        name: (lambda i, module=module: module(pages[i]))
        for name, module in modules.items()
        if name != "official"
    }
    side = 8192 if device.type == "cuda" else 2048
    work["product"] = product_rate(device, pages[0].dtype, side)
    times = interleaved(work, given.repeats, device, warmup=0)  # the check was one
    seconds = {name: median(values) for name, values in times.items()}
    return seconds, 2 * side**3 / seconds.pop("product")


def compare(given) -> None:
    device, names = start(given.device, given.threads).device, CONTENDERS
    names += ("flex",) if given.flex else ()
    seconds, rate = timed(given, device, names)
    side = page_side(given.mode, SIZES[given.preset].page_format)
    needed = given.pages * flops.encoder_flops(SIZES[given.preset], side)
    memory = {name: child(name)["peak"] for name in names}
    ours = seconds["deepsynth_min"]
    rows = [
        (
            name,
            f"{t * 1e3:.0f} ms",
            f"{t / ours:.2f}",
            f"{t * rate / needed:.2f}",
            f"{memory[name] / 2**20:,.0f} MiB",
        )
        for name, t in seconds.items()
    ]
    rows.append(("official", "", "", "", f"{memory['official'] / 2**20:,.0f} MiB"))
    print(
        f"encoder {given.preset}, {given.pages} page(s), {given.precision}, "
        f"{torch.get_num_threads()} threads; equal features were checked"
    )
    print(table(rows, ("forward", "median", "x ours", "x floor", "peak above weights")))
    finish(
        {
            "bench": "encoder",
            **vars(given),
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "peak_bytes": memory,
            "flops": needed,
            "product_rate": rate,
            "ratio": seconds["transformers"] / ours,
            "memory_of_official": memory["deepsynth_min"] / memory["official"],
            **environment("torch", "transformers"),
        }
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    with_clip = [name for name, config in SIZES.items() if config.clip]
    add("--preset", choices=with_clip, default="deepseek-ocr")
    add("--mode", default="auto", help="page size, as in training")
    add("--pages", type=int, default=1)
    add("--precision", choices=("fp32", "bf16"), default="fp32")
    add("--flex", action="store_true", help="flex_attention too; compiles, for minutes on a CPU")
    add("--repeats", type=int, default=3)
    add("--device", default="auto")
    add("--threads", type=int, default=0)
    add("--row", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    given = parser().parse_args()
    if given.row:
        print(json.dumps(peak(given, given.row)))
    else:
        compare(given)


if __name__ == "__main__":
    main()
