"""A model to read with: that of a run's checkpoint, or any checkpoint with an adapter on it.

In: what a command line names. Out: an `OpenModel`: the model on its device, what makes prompts for
it, and the settings that it is to be used with.

The one idea: these settings come with the model: from the run's config.toml, or from the file that
lies beside weights or adapter (recorded.py). The command line takes precedence, then the adapter's
file, then the base model's, then the defaults.
"""

import argparse
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from ..command_line import load_of_run
from ..config_file import check_found
from ..data.samples import SampleBuilder
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..model.deepseek_ocr import DeepseekOCR
from ..model.shape.presets import PRESETS, find_checkpoint
from ..options import OneLineParser, change
from ..settings import Settings
from ..training.build import build_base, load_run_model, quant_config, usual_answers
from ..training.distributed import World, start
from ..training.precision import autocast, hold_as_base, hold_as_trained
from ..tuning.adapter import base_digest, load_adapter
from ..tuning.lora import Base
from . import recorded
from .storage.run_directory import find_run_checkpoint, warn


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

    def fingerprint(self) -> str:
        """Tells apart models, by the first values of each weight, and settings on which answers
        depend: 16 hex digits."""
        digest = hashlib.sha256(repr(recorded.values(self.settings)).encode())
        for name, parameter in self.model.named_parameters():
            if parameter.is_floating_point():  # not what is packed in 4 bits
                some = parameter.detach().flatten()[:64].float().tolist()
                digest.update(f"{name} {list(parameter.shape)} {some}\n".encode())
        return digest.hexdigest()[:16]


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
    if values.get("temperature"):
        values = {"beams": 1, **values}  # even if the run's answers came from a beam search
    settings = load_of_run(Path(given.run)) if given.run else Settings()
    world = start(given.device, values.get("threads", settings.run.threads))
    if given.run:
        if given.adapter:
            raise UserError("--adapter: a run has its own adapter; give --model")
        settings = change(settings, **values)
        checkpoint = find_run_checkpoint(Path(given.run), given.checkpoint)
        check_found(Path(given.run) / "config.toml", settings, "main_font", "font")
        model, base = load_run_model(settings, Path(given.run), checkpoint, world.device)
    else:
        model, base, settings = _of_checkpoint(given, values, world)
        checkpoint = Path(given.adapter or base)
    model.eval().requires_grad_(False)
    settings = usual_answers(settings)
    builder = SampleBuilder(settings, model.config, load_tokenizer(base))
    return OpenModel(model, builder, settings, world, checkpoint)


def _of_checkpoint(
    given: argparse.Namespace, values: dict[str, object], world: World
) -> tuple[DeepseekOCR, Path, Settings]:
    """(model, with --adapter in it, directory of its tokenizer, settings to use it with)."""
    if given.model in PRESETS:
        raise UserError(f"--model {given.model}: a preset has random weights")
    directory = find_checkpoint(given.model)
    adapter = find_checkpoint(given.adapter) if given.adapter else None
    found = recorded.read(directory)
    if adapter is not None:  # its file says how it stands on the base, if it has one
        found = {name: value for name, value in found.items() if name not in recorded.TYPES}
        found |= recorded.read(adapter)
    for line in recorded.check_fonts(found, values, given.adapter or given.model):
        if world.is_main:
            warn(line)
    settings = change(Settings(), **{"model": given.model, **found, **values})
    packed = None if adapter is None else quant_config(settings)
    model = build_base(settings.model, directory, world.device, packed=packed)
    if adapter is not None:
        load_adapter(model, adapter, Base(given.model, None, base_digest(directory)))
    if "precision" in found:  # the types that the weights had in training, however they are stored
        hold_as_trained(model, settings)
    elif adapter is not None:  # of another trainer
        hold_as_base(model)
    return model, directory, settings
