"""What a run has written, read by plain means: its figures and its newest weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

EXACT = ("kind", "step", "loss", "grad_norm", "lr", "samples", "reads/blank", "cer")


def lines(run: Path, kind: str = "") -> list[dict]:
    """The lines of metrics.jsonl, all or those of a kind."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if kind in ("", line["kind"])]


def exact_lines(run: Path) -> list[dict]:
    """What two equal runs have in common: no times, no rates."""
    return [{key: line[key] for key in EXACT if key in line} for line in lines(run)]


def losses(run: Path, kind: str = "eval") -> list[float]:
    return [line["loss"] for line in lines(run, kind)]


def newest(run: Path) -> Path:
    return run / "checkpoints" / (run / "last").read_text().strip()


def weights(run: Path, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Of the newest checkpoint."""
    return load_file(newest(run) / file)


def assert_same_run(ours: Path, reference: Path, *files: str) -> None:
    """Equal figures, and tensors of the newest checkpoint that are equal to the bit."""
    assert exact_lines(ours) == exact_lines(reference)
    for file in files:
        a, b = weights(ours, file), weights(reference, file)
        assert a.keys() == b.keys() and all(a[name].equal(b[name]) for name in b), file
