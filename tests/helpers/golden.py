"""The numbers that the official code computed from a small checkpoint (tests/golden/README.md)."""

from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

from deepsynth_min.model.batch import Batch

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = ("base", "small", "gundam")
TOLERANCE = 2e-4  # absolute, features and logits
GRADIENT_TOLERANCE = 1e-3  # relative, in the norm of a tensor


@cache
def expected() -> dict[str, torch.Tensor]:
    with safe_open(GOLDEN / "expected.safetensors", framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def golden_batch(case: str, rows=slice(None), tokens=slice(None)) -> Batch:
    e = expected()
    text = {
        name: e[f"{case}.{name}"][rows, tokens]
        for name in ("input_ids", "attention_mask", "image_mask", "labels")
    }
    text["attention_mask"] = text["attention_mask"].bool()
    pages = e[f"{case}.pages"][rows]
    if f"{case}.tiles" not in e:
        return Batch(pages=pages, **text)
    grids = e[f"{case}.grid"].expand(len(pages), 2)
    return Batch(pages=pages, tiles=e[f"{case}.tiles"][rows].flatten(0, 1), grids=grids, **text)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    return (ours - theirs).abs().max().item()
