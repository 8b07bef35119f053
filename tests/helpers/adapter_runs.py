"""Short real runs over a small base, for the tests of adapters, exports and uploads."""

import json
from pathlib import Path

import torch

from deepsynth_min import train
from deepsynth_min.corpus import documents as corpus
from deepsynth_min.data.tokenizer import EMBEDDED
from deepsynth_min.model.deepseek_ocr import DeepseekOCR
from deepsynth_min.training.checkpoint import save_model

QUICK = (
    "--batch-size 2 --val-samples 2 --log-every 1 --lr 0.01 --answer-samples 0 "
    "--ablation-samples 0 --threads 1"
).split()


def write_base(directory: Path, config, seed: int = 0) -> Path:
    """A complete model directory, bf16 like the official one, with random weights."""
    torch.manual_seed(seed)
    directory.mkdir()
    save_model(DeepseekOCR(config).bfloat16(), directory, EMBEDDED)
    return directory


def write_rows(path: Path) -> Path:
    rows = [{"text": d.text[:300], "summary": d.summary} for d in corpus.documents("train")[:12]]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def run(folder: Path, *arguments, out: str = "run") -> Path:
    """Trains over folder/base on folder/rows.jsonl; returns the run directory."""
    words = [*QUICK, "--out", folder / out, *arguments]
    if "--data" not in words:
        words += ["--data", folder / "rows.jsonl"]
    if "--model" not in words:
        words += ["--model", folder / "base"]
    assert train.main([str(word) for word in words]) == 0
    return folder / out
