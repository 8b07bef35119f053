"""A run's model, written for others: the official layout, or the adapter alone.

    python -m deepsynth_min.export --run DIR --to DIR2 [--merge] [--base DIR3]

In: a run directory. Out: DIR2, which servers and loaders of DeepSeek-OCR take: config, tokenizer
and processor files of the base byte for byte, every tensor in bf16 under its official name, in
shards with an index. Of a run that trained an adapter: with --merge such a model, without it the
adapter's own files, as PEFT and servers read them.

The one idea: nothing is believed. What was written is read back strictly, tensor by tensor, and the
model that it makes must give the logits of the model in memory for a rendered page, but for what
rounding to bf16 explains. Only then the directory gets its name; else nothing remains of it.

Merging computes W + scale * B A in float32 for one tensor at a time, and a shard is written as soon
as it is full: beside the model itself, memory holds one shard and one layer's stacked weight. A
quantised base is unpacked on the way; with --base the original weights take its place.
"""

import gc
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from . import adapter, corpus, hub, settings as settings_
from .batch import Batch
from .build import is_adapted, load_run_model
from .checkpoint import copy_base_files
from .config import UserError, exit_code
from .data import SampleBuilder, collate
from .disk import whole_directory
from .distributed import start, stop
from .evaluate import find_run_checkpoint
from .lora import LoraExperts, LoraLinear
from .model import DeepseekOCR
from .options import OneLineParser
from .precision import autocast
from .quant import Packed
from .row import Row
from .settings import Settings
from .tokenizer import load_tokenizer
from .weights import (
    SHARD_BYTES, find_checkpoint, official_pieces, official_views, open_tensors, tensor_digest,
    write_shards,
)  # fmt: skip

TOLERANCE = 0.05  # of the logits' norm; rounding weights to bf16 alone changes them by about 0.005


# -- merging --------------------------------------------------------------------------------------


def _value(weight: Tensor | Packed) -> Tensor:
    return weight.unpack(torch.bfloat16) if isinstance(weight, Packed) else weight.detach()


def _expert_deltas(experts: LoraExperts, name: str) -> dict[str, Tensor]:
    """Official name -> what the expert's own pair adds to it."""
    kinds = ("gate", "up") if name.endswith("gate_up") else ("down",)
    prefix, found = name.rpartition(".")[0], {}
    for kind in kinds:
        pair = getattr(experts, f"lora_{kind}")
        for e in range(experts.count):
            delta = pair.B[e].detach() @ pair.A[e].detach() * pair.scale
            found[f"{prefix}.{e}.{kind}_proj.weight"] = delta
    return found


def merged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(official name, bf16 value) of every weight, its adapter added, one at a time, in order."""
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if ".base" in path or ".lora" in path:
            continue  # comes with the module that holds it
        if isinstance(module, LoraLinear):
            own, deltas = {f"{path}.weight": module.base.weight}, {}
            deltas[f"{path}.weight"] = module.lora.delta()
        elif isinstance(module, LoraExperts):
            own = {f"{path}.gate_up": module.base.gate_up, f"{path}.down": module.base.down}
            deltas = None
        elif isinstance(module, Packed):
            own, deltas = {path: module}, {}
        else:
            own, deltas = {f"{path}.{name}": p for name, p in module._parameters.items()}, {}
        for name, weight in own.items():
            if weight is None:
                continue  # a linear without bias
            added = _expert_deltas(module, name) if deltas is None else deltas
            for piece, value in official_pieces(name, _value(weight)).items():
                if piece in added:
                    value = value.float() + added[piece]
                yield piece, value.to(torch.bfloat16)


def write_model(model: DeepseekOCR, directory: Path, base: Path, shard_bytes: int) -> dict:
    """Fills `directory` with the official layout; returns {name: digest of its bytes}."""
    copy_base_files(model, directory, base)
    with torch.device("meta"):
        shapes = official_views(DeepseekOCR(model.config))
    sizes = {name: 2 * view.numel() for name, view in shapes.items()}
    digests = {}

    def noted():
        for name, tensor in merged_tensors(model):
            digests[name] = tensor_digest(tensor)
            yield name, tensor

    write_shards(noted(), sizes, directory, shard_bytes, always_index=True)
    return digests


# -- checking -------------------------------------------------------------------------------------


def rendered_page(settings: Settings, model: DeepseekOCR, tokenizer) -> Batch:
    """One document of the embedded corpus, drawn with the run's page settings, and its answer."""
    document = corpus.documents("val")[0]
    builder = SampleBuilder(settings, model.config, tokenizer)
    row = Row("the embedded corpus", document.summary, text=document.text)
    return collate([builder(row)], builder.special)


@torch.no_grad()
def page_logits(model: DeepseekOCR, batch: Batch, precision: str) -> Tensor:
    """float32 [T, V], on the CPU, of a batch of one."""
    device = model.lm_head.weight.device
    model.eval()
    with autocast(device, precision):
        return model(batch.to(device))[0].float().cpu()


def compare(written: Tensor, expected: Tensor, where: Path) -> str:
    """What to tell the user. Raises UserError if the logits differ by more than rounding."""
    error = ((written - expected).norm() / expected.norm()).item()
    agree = (written.argmax(-1) == expected.argmax(-1)).float().mean().item()
    text = (
        f"logits on a rendered page differ from the model in memory by {error:.2%} of their norm; "
        f"the most probable token is the same at {agree:.1%} of {len(expected)} positions"
    )
    if not error <= TOLERANCE:  # also where it is not a number
        raise UserError(f"{where}: {text}; more than {TOLERANCE:.0%}, so the export is withdrawn")
    return text


def check_tensors(directory: Path, digests: dict[str, bytes]) -> None:
    """Reads every tensor back. Raises UserError naming one whose bytes are not what was written."""
    with ExitStack() as stack:
        source = open_tensors(directory, stack)
        for name, digest in digests.items():
            if tensor_digest(source[name].get_tensor(name)) != digest:
                raise UserError(f"{directory}: {name} was not read back as written")


# -- the command ----------------------------------------------------------------------------------


def parse_size(text: str) -> int:
    """`5GB`, `500MB`, `2GiB` or a number of bytes. Raises UserError."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if not match or match[2] not in units or float(match[1]) <= 0:
        raise UserError(f"--shard-size {text}: not a size such as 5GB, 500MB or 2GiB")
    return int(float(match[1]) * units[match[2]])


def export_model(settings: Settings, run: Path, checkpoint: Path, to: Path, *, device, base=None,
                 shard_bytes: int = SHARD_BYTES) -> str:  # fmt: skip
    """Writes a run's model (its adapter merged) to `to`; returns what the check found."""
    model, directory = load_run_model(settings, run, checkpoint, device, base=base)
    batch = rendered_page(settings, model, load_tokenizer(directory))
    precision, dtype = settings.optim.precision, model.lm_head.weight.dtype
    expected = page_logits(model, batch, precision)
    with whole_directory(to) as partial:
        digests = write_model(model, partial, directory, shard_bytes)
        write_card(settings, run, checkpoint, partial)
        del model  # two models need not fit
        gc.collect()
        check_tensors(partial, digests)
        written = DeepseekOCR.from_pretrained(partial, dtype, device)
        return compare(page_logits(written, batch, precision), expected, to)


def export_adapter(settings: Settings, run: Path, checkpoint: Path, to: Path, *, device) -> str:
    """Copies a run's adapter to `to` and reads it back; returns what the check found."""
    model, directory = load_run_model(settings, run, checkpoint, device)
    batch = rendered_page(settings, model, load_tokenizer(directory))
    precision = settings.optim.precision
    expected = page_logits(model, batch, precision)
    with whole_directory(to) as partial:
        copy_adapter(checkpoint, partial)
        write_card(settings, run, checkpoint, partial)
        adapter.restore_adapter(model, partial)
        text = compare(page_logits(model, batch, precision), expected, to)
    if (to / adapter.OTHERS).exists():
        text += (f"\nnote: {adapter.OTHERS} holds what trained beside the adapter, which other "
                 "programs do not read; --merge makes a model that has it")  # fmt: skip
    return text


def copy_adapter(checkpoint: Path, directory: Path) -> None:
    for name in (adapter.CONFIG, adapter.TENSORS, adapter.OTHERS):
        if (checkpoint / name).exists():
            shutil.copyfile(checkpoint / name, directory / name)


def write_card(settings: Settings, run: Path, checkpoint: Path, directory: Path) -> None:
    card = hub.model_card(settings, run, checkpoint, (directory / adapter.CONFIG).exists())
    (directory / "README.md").write_text(card, encoding="utf-8")


def stage_for_hub(model, base: Path, settings: Settings, run: Path, checkpoint: Path) -> Path:
    """RUN/hub: what a training run uploads when it ends, from the model that is still in memory."""
    with whole_directory(run / "hub") as partial:
        if model.adapter is not None:
            copy_adapter(checkpoint, partial)
        else:
            check_tensors(partial, write_model(model, partial, base, SHARD_BYTES))
        write_card(settings, run, checkpoint, partial)
    return run / "hub"


def run(arguments: list[str]) -> None:
    parser = OneLineParser(
        "python -m deepsynth_min.export",
        description="Writes a run's model in the official layout, or its adapter, and checks it.",
    )
    add = parser.add_argument
    add("--run", required=True, metavar="DIR", help="run directory of a training")
    add("--to", required=True, metavar="DIR", help="directory to write; must not exist")
    add("--merge", action="store_true", help="merge the run's adapter into its base model")
    add("--base", metavar="DIR", help="merge into this checkpoint, not into quantised weights")
    add("--checkpoint", default="last", metavar="WHICH", help="last, best or a step number")
    add("--shard-size", default="5GB", metavar="SIZE", help="largest file (default: 5GB)")
    add("--push-to-hub", metavar="REPO", help="then upload it to this repository (owner/name)")
    add("--private", action="store_true", help="make the repository private, if it is new")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    given = parser.parse_args(arguments)
    source, to, shard_bytes = Path(given.run), Path(given.to), parse_size(given.shard_size)
    if not os.path.isfile(source / "config.toml"):
        raise UserError(f"{source}: not a run directory (no config.toml)")
    settings = settings_.load(source / "config.toml")
    checkpoint = find_run_checkpoint(source, given.checkpoint)
    adapted = is_adapted(settings.model.tune)
    if not adapted and (given.merge or given.base):
        raise UserError(f"--merge, --base: {source} trained no adapter; its model is whole")
    if given.base and not given.merge:
        raise UserError("--base: only with --merge")
    if to.exists():
        raise UserError(f"--to {to}: exists already")
    world = start(given.device, settings.run.threads)
    if adapted and not given.merge:
        said = export_adapter(settings, source, checkpoint, to, device=world.device)
    else:
        base = find_checkpoint(given.base) if given.base else None
        said = export_model(settings, source, checkpoint, to, device=world.device, base=base,
                            shard_bytes=shard_bytes)  # fmt: skip
    print(f"{to}: {said}")
    if given.push_to_hub:
        hub.push(to, given.push_to_hub, given.private)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
