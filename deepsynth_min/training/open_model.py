"""A model to read with: that of a run's checkpoint, or any checkpoint with an adapter on it.

In: what a command line names. Out: an `OpenModel`: the model on its device, the directory that its
tokenizer comes from, and the settings that it is to be used with.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.samples import SampleBuilder
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..model.deepseek_ocr import DeepseekOCR
from ..model.presets import PRESETS, find_checkpoint
from ..options import OneLineParser, change
from ..settings import Settings, load_of_run
from ..tuning.adapter import base_digest, load_adapter
from ..tuning.lora import Base
from .build import load_run_model, usual_answers
from .distributed import World, start
from .precision import autocast
from .run_directory import find_run_checkpoint


@dataclass(frozen=True)
class OpenModel:
    """A model and all that turns a row into a prompt for it."""

    model: DeepseekOCR
    builder: SampleBuilder
    settings: Settings
    world: World
    checkpoint: Path

    def precision(self) -> torch.autocast:
        """The context of the model's products: as trained; bf16 for weights partly held in it."""
        dtypes = {p.dtype for p in self.model.parameters() if p.is_floating_point()}
        mixed = len(dtypes) > 1 and torch.bfloat16 in dtypes
        kind = "bf16" if mixed else self.settings.optim.precision
        return autocast(self.world.device, kind)


def add_model_options(out: OneLineParser) -> None:
    """--run or --model, and what goes with each."""
    model = out.add_mutually_exclusive_group(required=True)
    # torchrun takes a `--run` for its own, wherever it stands; hence the second name.
    run = "run directory of a training; under torchrun: --run-dir"
    model.add_argument("--run", "--run-dir", dest="run", metavar="DIR", default="", help=run)
    checkpoint = "tiny-reader, a checkpoint directory or a hub id"
    model.add_argument("--model", metavar="DIR", default="", help=checkpoint)
    for option, metavar, default, text in (
        ("--checkpoint", "WHICH", "last", "of --run: last, best or a step number"),
        ("--adapter", "DIR", "", "directory or hub id of an adapter for --model"),
        ("--device", "DEVICE", "auto", "auto, cpu, cuda, ..."),
    ):
        text += f" (default: {default})" if default else ""
        out.add_argument(option, metavar=metavar, default=default, help=text)
    add = out.add_argument
    add("--mode", help="page size, as in training (default: the run's, or auto)")
    add("--instruction", metavar="TEXT", help="prompt after the page (default: the run's)")
    add(
        "--batch-size", metavar="N", type=int, help="documents at a time (default: the run's, or 8)"
    )
    add("--seed", metavar="N", type=int, help="of sampling (default: the run's, or 0)")
    threads = "CPU threads per process; 0: all, shared (default: the run's, or 0)"
    add("--threads", metavar="N", type=int, help=threads)


OWN = ("mode", "instruction", "batch_size", "seed", "threads")  # settings among these options


def open_model(given: argparse.Namespace, values: dict[str, object]) -> OpenModel:
    """The model that the command line names, on its device.

    given: the command line; values: the settings among it, which take precedence over the run's.
    Raises UserError.
    """
    for name, least in (("batch_size", 1), ("threads", 0), ("seed", 0)):
        if getattr(given, name, least) < least:
            raise UserError(f"--{name.replace('_', '-')}: {getattr(given, name)} is below {least}")
    values = {name: getattr(given, name) for name in OWN if name in given} | values
    settings = load_of_run(Path(given.run)) if given.run else Settings()
    if values.get("temperature"):
        values = {"beams": 1, **values}  # even if the run's answers came from a beam search
    settings = change(settings, **values)
    world = start(given.device, settings.run.threads)
    if given.run:
        if given.adapter:
            raise UserError("--adapter: a run has its own adapter; give --model")
        checkpoint = find_run_checkpoint(Path(given.run), given.checkpoint)
        model, base = load_run_model(settings, Path(given.run), checkpoint, world.device)
    else:
        model, base = _of_checkpoint(given, world.device)
        checkpoint, settings = Path(given.adapter or base), change(settings, model=given.model)
    model.eval().requires_grad_(False)
    settings = usual_answers(settings)
    builder = SampleBuilder(settings, model.config, load_tokenizer(base))
    return OpenModel(model, builder, settings, world, checkpoint)


def _of_checkpoint(given: argparse.Namespace, device: torch.device) -> tuple[DeepseekOCR, Path]:
    """(model, directory of its tokenizer), with --adapter in it."""
    if given.model in PRESETS:
        raise UserError(f"--model {given.model}: a preset has random weights")
    directory = find_checkpoint(given.model)
    model = DeepseekOCR.from_pretrained(directory, device=device)
    if given.adapter:
        base = Base(given.model, None, base_digest(directory))
        load_adapter(model, find_checkpoint(given.adapter), base)
    return model, directory
