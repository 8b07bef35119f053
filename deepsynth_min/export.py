"""`python -m deepsynth_min.export --run DIR --to DIR2`: a run's model for others.

In: a run directory. Out: DIR2, a checkpoint in the official layout or the run's adapter in PEFT's
(publish/official.py), one line about how its logits compare with those of the model in memory, and
one on standard error about which of the run's checkpoints it is.
"""

import os
import re
import sys
from pathlib import Path

import torch

from .command_line import load_of_run
from .errors import UserError, exit_code
from .model.shape.presets import find_checkpoint
from .options import OneLineParser
from .publish import upload
from .publish.official import export_adapter, export_model
from .runs.storage.run_directory import find_run_checkpoint
from .runs.storage.taken import which_checkpoint
from .training.build import is_adapted
from .training.checkpoint import damage
from .training.distributed import start, stop

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def parse_size(text: str) -> int:
    """`5GB`, `500MB`, `2GiB` or a number of bytes. Raises UserError."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if not match or match[2] not in units or float(match[1]) <= 0:
        raise UserError(f"--shard-size {text}: not a size such as 5GB, 500MB or 2GiB")
    return int(float(match[1]) * units[match[2]])


def parser() -> OneLineParser:
    out = OneLineParser(
        "python -m deepsynth_min.export",
        description="Writes the model that a run trained in the official layout, or the adapter "
        "that it trained in PEFT's, and checks what was written.",
    )
    add = out.add_argument
    add("--run", required=True, metavar="DIR", help="run directory of a training")
    add("--to", required=True, metavar="DIR", help="directory to write; must not exist")
    add("--merge", action="store_true", help="merge the run's adapter into its base model")
    add(
        "--base",
        metavar="DIR",
        help="with --merge: the base model as it was before quantisation (for qlora)",
    )
    add(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last, best or a step number (default: last)",
    )
    text = "of the weights: bf16, as the official files, or float32, which rounds nothing"
    add("--dtype", choices=DTYPES, default="bf16", help=f"{text} (default: bf16)")
    add("--shard-size", default="5GB", metavar="SIZE", help="largest file (default: 5GB)")
    add("--push-to-hub", metavar="OWNER/NAME", help="then upload it to this repository")
    add("--private", action="store_true", help="make the repository private, if it is new")
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    return out


def run(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    source, to, shard_bytes = Path(given.run), Path(given.to), parse_size(given.shard_size)
    settings = load_of_run(source)
    checkpoint = find_run_checkpoint(source, given.checkpoint)
    adapted = is_adapted(settings.model.tune)
    if not adapted and (given.merge or given.base):
        raise UserError(f"--merge, --base: {source} trained no adapter; its model is whole")
    if given.base and not given.merge:
        raise UserError("--base: only with --merge")
    if adapted and not given.merge and given.dtype != "bf16":
        raise UserError(f"--dtype {given.dtype}: an adapter is written as it is; only with --merge")
    if os.path.lexists(to):
        raise UserError(f"--to {to}: exists already")
    if wrong := damage(checkpoint):
        raise UserError(f"{checkpoint}: damaged ({wrong}); --checkpoint gives another")
    device = start(given.device, settings.run.threads).device
    if adapted and not given.merge:
        finding = export_adapter(settings, source, checkpoint, to, device=device)
    else:
        base = find_checkpoint(given.base) if given.base else None
        finding = export_model(
            settings,
            source,
            checkpoint,
            to,
            device=device,
            base=base,
            shard_bytes=shard_bytes,
            dtype=DTYPES[given.dtype],
        )
    print(f"{to}: {finding}")
    print(which_checkpoint(source, checkpoint, settings.evaluation.best), file=sys.stderr)
    if given.push_to_hub:
        upload.push(to, given.push_to_hub, given.private)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop)


if __name__ == "__main__":
    sys.exit(main())
