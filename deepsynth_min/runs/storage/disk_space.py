"""Space on the disk: what the checkpoints of a run will take, before the first one is written.

In: a model and its optimizer, as they will train. Out: bytes of a checkpoint, and a line about
them; a UserError if not even one fits.

The one idea: everything that a checkpoint holds has its shape and type before the first step, so
its size is a sum. Nothing is copied, and a model in shards needs no communication for it.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from ...errors import UserError
from ...model.weights import is_adapter, official_pieces
from ...training.checkpoint import all_checkpoints, base_files, optimizer_tensors
from ...training.optim import LossScaler
from ...tuning.adapter import trained_beside
from ...tuning.lora import adapter_views

NOTES = 3000  # bytes of training.json, manifest.json and adapter_config.json, about


def _bytes(tensors: dict[str, Tensor]) -> int:
    """Of a safetensors file: the values (all of them, of shards too), and the header's entries."""
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    for name, tensor in tensors.items():
        entry = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [total, total]}
        total += len(json.dumps({name: entry}, separators=(",", ":")))
    return total


def checkpoint_bytes(
    model: nn.Module,
    eval_model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: LossScaler,
    base: Path,
) -> int:
    """What checkpoint.save or shard.save will write; the optimizer's state must be there.

    eval_model: whole tensors, perhaps without values, where the model's are shards, else the model
    itself; base: where config and tokenizer files lie.
    """
    parts = [optimizer_tensors(model, optimizer, scaler)]
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    if model.adapter is None:
        shapes = {n: torch.empty_like(p, device="meta") for n, p in eval_model.named_parameters()}
        for name, shape in shapes.items():
            parts.append(official_pieces(name, shape.to(types[name])))
    else:
        dtype = next(dtype for name, dtype in types.items() if is_adapter(name))
        views = adapter_views(eval_model) | trained_beside(eval_model)
        for name, view in views.items():
            shape = torch.empty_like(view, dtype=types.get(name, dtype), device="meta")
            parts.append({name: shape})
    copied = 0 if model.adapter else sum(file.stat().st_size for file in base_files(base))
    return sum(map(_bytes, parts)) + copied + NOTES


def size_text(size: int) -> str:
    """Bytes for people: 29.4 GB, 41.0 MB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def check_space(size: int, checkpoints: Path, keep: int) -> tuple[str, str]:
    """(a line about space for checkpoints of `size` bytes, "" or a warning), at most: `keep`
    (--keep), the best one and the next, which is written before another is removed.

    Raises UserError if not one fits.
    """
    nearest = next(folder for folder in checkpoints.absolute().parents if folder.is_dir())
    free, there = shutil.disk_usage(nearest).free, len(all_checkpoints(checkpoints))
    needed = (keep + 2 - there) * size
    one, left = size_text(size), size_text(free)
    if free < size:
        raise UserError(
            f"--out {checkpoints.parent}: no space for a checkpoint, which takes {one}; "
            f"{left} are free"
        )
    line = f"a checkpoint takes {one}; --keep {keep}, the best one and the next "
    line += f"take {size_text((keep + 2) * size)}; {left} are free"
    warning = f"the disk may not hold all checkpoints: {line}; lower --keep, or free some space"
    return line, warning if free < needed else ""
