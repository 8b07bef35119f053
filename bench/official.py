"""Peer (b): the official model with its own remote code, from a directory that you supply.

    python bench/official.py --baseline-dir DeepSeek-OCR --precision bf16 --batch-size 8
    python bench/official.py --baseline-dir DeepSeek-OCR --tune lora

DIR holds the official checkpoint with its Python files; install the transformers that those were
written for (4.46.3) and, for --tune lora, PEFT. Running this script runs that code, which nothing
else in this repository does. Its vision part calls `.cuda()` itself, so it needs a GPU; `--device
cpu` is for code that does not, such as the stand-in that tests/bench/test_bench.py writes.

Ours loads the same weights. Both take the same step on the same batches, in turn: forward,
backward, clipping, AdamW on what trains. Their losses, before the first step, must agree.
"""

import argparse
from pathlib import Path

import torch
from common import environment, finish, interleaved, median, table
from torch import nn
from train_step import random_batch

from deepsynth_min.errors import UserError, exit_code
from deepsynth_min.model import Batch, DeepseekOCR
from deepsynth_min.pages.modes import page_side
from deepsynth_min.training.distributed import start, stop
from deepsynth_min.training.optim import LossScaler, clip_and_step, make_adamw
from deepsynth_min.training.precision import autocast, set_parameter_types
from deepsynth_min.tuning import LoraConfig, attach
from deepsynth_min.tuning.freeze import freeze
from deepsynth_min.tuning.targets import choose

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj"]  # attention alone: both sides adapt the same


def check_directory(name: str) -> Path:
    """Raises UserError unless it looks like the official checkpoint with its code."""
    if not name:
        raise UserError("--baseline-dir: give the directory of the official checkpoint")
    directory = Path(name)
    for needed in ("config.json", "modeling_deepseekocr.py"):
        if not (directory / needed).is_file():
            raise UserError(
                f"--baseline-dir {name}: no {needed}; it must be the official "
                "checkpoint's directory with its Python files"
            )
    return directory


class Official(nn.Module):
    """The remote-code model, called with our batches."""

    def __init__(self, directory: Path, given, device: torch.device):
        super().__init__()
        from transformers import AutoModel

        model = AutoModel.from_pretrained(
            directory, trust_remote_code=True, torch_dtype=torch.bfloat16, use_safetensors=True
        )
        if given.tune == "lora":
            from peft import LoraConfig as PeftConfig, get_peft_model

            model.requires_grad_(False)
            model = get_peft_model(
                model, PeftConfig(r=given.rank, lora_alpha=2 * given.rank, target_modules=LINEARS)
            )
        self.model = model.to(device).train()

    def forward(self, batch: Batch) -> torch.Tensor:
        """Mean loss over the scored tokens."""
        pages = ((batch.pages.float() / 255 - 0.5) / 0.5).expand(-1, 3, -1, -1).bfloat16()
        no_tiles = torch.zeros(1, 3, 640, 640, dtype=pages.dtype, device=pages.device)
        out = self.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            labels=batch.labels,
            images=[(no_tiles, page[None]) for page in pages],
            images_seq_mask=batch.image_mask,
            images_spatial_crop=torch.ones(len(pages), 2, dtype=torch.long, device=pages.device),
            use_cache=False,
            return_dict=True,
        )
        return out.loss


class Ours(nn.Module):
    def __init__(self, directory: Path, given, device: torch.device):
        super().__init__()
        self.model = DeepseekOCR.from_pretrained(directory, device=device)
        if given.tune == "lora":
            config = LoraConfig(given.rank, 2.0 * given.rank)
            attach(self.model, config, choose(self.model, ("attention",)))
        freeze(self.model, given.tune)
        set_parameter_types(self.model, given.precision)

    def forward(self, batch: Batch) -> torch.Tensor:
        total, count = self.model.loss(batch)
        return total / count


class Step:
    def __init__(self, module: nn.Module, given, batches: list[Batch]):
        self.module, self.given, self.batches = module, given, batches
        self.device = batches[0].input_ids.device
        self.optimizer = make_adamw(module, (0.9, 0.95), 0.01)
        self.scaler = LossScaler(False, self.device)

    def __call__(self, i: int) -> None:
        with autocast(self.device, self.given.precision):
            loss = self.module(self.batches[i])
        loss.backward()
        clip_and_step(self.optimizer, self.scaler, 1e-6, 1.0)
        self.optimizer.zero_grad(set_to_none=True)


def run(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--baseline-dir", default="")
    add("--tune", choices=("decoder", "lora"), default="lora")
    add("--rank", type=int, default=16)
    add("--mode", default="base")
    add("--batch-size", type=int, default=8)
    add("--answer", type=int, default=100)
    add("--precision", choices=("bf16",), default="bf16")
    add("--repeats", type=int, default=9)
    add("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args(arguments)
    directory = check_directory(given.baseline_dir)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("the official code calls .cuda() itself: this bench needs a GPU")
    device = start(given.device).device
    torch.manual_seed(0)
    modules = {"deepsynth_min": Ours(directory, given, device)}
    modules["official"] = Official(directory, given, device)
    config = modules["deepsynth_min"].model.config
    side = page_side(given.mode, config.page_format)
    batches = [
        random_batch(config, side, given.batch_size, given.answer).to(device) for _ in range(4)
    ]
    with torch.no_grad(), autocast(device, given.precision):
        losses = {name: module(batches[0]).item() for name, module in modules.items()}
    ours, theirs = losses.values()
    assert abs(ours - theirs) < 0.02 * abs(theirs), f"the losses differ: {losses}"
    steps = {name: Step(module, given, batches) for name, module in modules.items()}
    peaks = {}
    for name, step in steps.items() if device.type == "cuda" else ():
        held = torch.cuda.memory_allocated()  # both models; the peak of a step stands above it
        torch.cuda.reset_peak_memory_stats()
        step(0)
        peaks[name] = torch.cuda.max_memory_allocated() - held
    times = interleaved(steps, given.repeats, device)
    seconds = {name: median(values) for name, values in times.items()}
    rows = [
        (
            name,
            f"{t * 1e3:.0f} ms",
            f"{given.batch_size / t:.1f}",
            f"{peaks[name] / 2**20:,.0f} MiB" if peaks else "",
        )
        for name, t in seconds.items()
    ]
    print(table(rows, (f"tune {given.tune}", "step", "samples/s", "peak of the first step")))
    finish(
        {
            "bench": "official",
            **vars(given),
            "seconds": seconds,
            "peak_bytes": peaks,
            "ratio": seconds["official"] / seconds["deepsynth_min"],
            **environment("torch", "transformers", "peft"),
        }
    )


if __name__ == "__main__":
    raise SystemExit(exit_code(run, None, stop))
