"""Mistakes of a hurried user in the folder of tests/test_whole_day.py: command lines, and what is
said of each."""

import json
from pathlib import Path

_MISTAKES = {
    "train --data scans --learning_rate 1e-4": r"--learning_rate.*--lr",
    "train --data scans --per_device_train_batch_size 2": r"--batch-size",
    "train --data scnas --out runs/new": r"scnas",
    "train --data latin1.jsonl --out runs/new": r"latin1\.jsonl.*Latin-1.*iconv",
    "train --data torn --out runs/new": r"torn/page\.png: not a readable image",
    "train --data gone --out runs/new": r"metadata\.jsonl:8: gone/away\.png: no such image",
    "train --data scans --out runs/lora": r"runs/lora.*--resume auto",
    "train --out runs/lora --resume atuo": r"--resume auto",
    "train --out runs/lora --resume auto --model whole": r"--model 'tiny-reader', now 'whole'",
    "train --out runs/lora --resume auto --batch-size 3": r"global batch.* of 4, now 3",
    "train --data scans --model adapter --out runs/new": r"adapter: an adapter, not a model",
    "generate --model runs/decoder latin1.jsonl": r"a run, not a model; .*runs/decoder/checkpoints",
    "evaluate --run scans": r"scans: not a run directory",
    "evaluate --run runs/lora --checkpoint 7": r"step-000007: no such checkpoint",
    "evaluate --model whole": r"--data",
    "generate --model whole --adapter adapter scans/validation/plain-00.png": r"another base",
    "generate --run runs/lora scans/validation/plain-99.png": r"plain-99\.png",
    "export --run runs/lora --to merged --merge": r"--to merged: exists already",
    "export --run runs/decoder --to new --merge": r"trained no adapter",
}

MISTAKES = {f"-m deepsynth_min.{line}": says for line, says in _MISTAKES.items()}


def write_bad_data(folder: Path) -> None:
    """A file in Latin-1, an image folder with a torn image, and one that names an absent one."""
    row = {"text": "Café", "summary": "A drink."}
    (folder / "latin1.jsonl").write_text(json.dumps(row, ensure_ascii=False), "latin-1")
    whole = (folder / "scans" / "validation" / "plain-00.png").read_bytes()
    for name, images in (("torn", ["page.png"] * 8), ("gone", ["page.png"] * 7 + ["away.png"])):
        (folder / name).mkdir()
        (folder / name / "page.png").write_bytes(whole[: len(whole) // 2])
        rows = [json.dumps({"file_name": image, "text": "A text."}) for image in images]
        (folder / name / "metadata.jsonl").write_text("\n".join(rows), "utf-8")
