"""Held-out loss: the same sum and count as in training, over rows that training never sees.

In: a model and held-out rows. Out: {"loss": nats per scored token, "perplexity", "tokens", "samples"}.

The one idea: every rank scores its own rows, the sums are added up, and only then is divided; so the
figure does not depend on the number of processes or on the batch size.

`python -m deepsynth_min.evaluate --run DIR` scores a run's checkpoint in a new process.
"""

import argparse
import json
import math
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from . import settings as settings_
from .build import load_run_model
from .config import UserError
from .data import SampleBuilder, held_out_batches
from .distributed import World, start, stop, sum_over_ranks
from .model import DeepseekOCR
from .precision import autocast
from .rows import open_rows
from .tokenizer import load_tokenizer


@torch.no_grad()
def held_out_loss(
    model: DeepseekOCR, rows, builder: SampleBuilder, world: World, batch_size: int, precision: str
) -> dict[str, float]:
    """Mean loss in nats per scored token over all `rows`, each scored once by one rank."""
    total = torch.zeros((), dtype=torch.float64, device=world.device)
    count = samples = 0
    batches = held_out_batches(rows, builder, batch_size, world.rank, world.size)
    steps = math.ceil(len(range(world.rank, len(rows), world.size)) / batch_size)
    quiet, was_training = not world.is_main, model.training
    model.eval()  # no dropout in adapters
    for batch in tqdm(batches, "evaluating", steps, leave=False, disable=quiet, unit="batch"):
        with autocast(world.device, precision):
            loss, scored = model.loss(batch.to(world.device))
        total += loss
        count += scored
        samples += len(batch.input_ids)
    model.train(was_training)
    total, count, samples = sum_over_ranks(world, total, count, samples)
    loss = total / count
    perplexity = math.exp(min(loss, 700.0))
    return {"loss": loss, "perplexity": perplexity, "tokens": int(count), "samples": int(samples)}


def find_run_checkpoint(run: Path, which: str) -> Path:
    """A run's checkpoint: last, best, or a step number. Raises UserError."""
    name = f"step-{int(which):06}" if which.isdecimal() else None
    if name is None:
        marker = run / which
        if which not in ("last", "best") or not marker.is_file():
            raise UserError(f"{run}: no checkpoint {which!r} (last, best or a step number)")
        name = marker.read_text(encoding="utf-8").strip()
    path = run / "checkpoints" / name
    if not path.is_dir():
        raise UserError(f"{path}: no such checkpoint")
    return path


def run(arguments: list[str]) -> dict[str, float]:
    parser = settings_.OneLineParser(
        "python -m deepsynth_min.evaluate",
        description="Scores a checkpoint of a run on the run's held-out rows.",
    )
    parser.add_argument("--run", required=True, metavar="DIR", help="run directory of a training")
    parser.add_argument("--checkpoint", default="last", metavar="WHICH",
                        help="last, best or a step number (default: last)")  # fmt: skip
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    given = parser.parse_args(arguments)
    directory = Path(given.run)
    if not (directory / "config.toml").is_file():
        raise UserError(f"{directory}: not a run directory (no config.toml)")
    settings = settings_.load(directory / "config.toml")
    checkpoint = find_run_checkpoint(directory, given.checkpoint)
    world = start(given.device, settings.run.threads)
    model, base = load_run_model(settings, directory, checkpoint, world.device)
    builder = SampleBuilder(settings, model.config, load_tokenizer(base))
    _, held_out = open_rows(settings.data, settings.optim.seed)
    optim = settings.optim
    result = held_out_loss(model, held_out, builder, world, optim.batch_size, optim.precision)
    if world.is_main:
        print(json.dumps({"checkpoint": str(checkpoint), **result}))
    return result


def main(arguments: list[str] | None = None) -> int:
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    finally:
        stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
