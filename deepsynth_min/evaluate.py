"""`python -m deepsynth_min.evaluate --run DIR`: scores a run's checkpoint in a new process.

In: a run directory, and settings that differ from the run's. Out: one JSON line of figures on
standard output (evaluation/evaluator.py names them), warnings on standard error.
"""

import json
import sys
from functools import partial
from pathlib import Path

from . import options
from .data.samples import SampleBuilder
from .data.sources import open_rows
from .data.tokenizer import load_tokenizer
from .errors import exit_code
from .evaluation import ablations
from .evaluation.evaluator import NO_ROUGE, Evaluator
from .options import OneLineParser, change
from .settings import EvaluationSettings, GenerationSettings, load_of_run
from .training.build import load_run_model
from .training.distributed import let_first_speak, start, stop
from .training.precision import autocast
from .training.run_directory import find_run_checkpoint

CONCERNS = {"evaluation": EvaluationSettings, "generation": GenerationSettings}


def parser() -> OneLineParser:
    """The options of this command and those settings of a run that concern evaluation."""
    out = options.make_parser(
        CONCERNS,
        "python -m deepsynth_min.evaluate",
        "Scores a checkpoint of a run on the run's held-out rows and prints the figures as a line "
        "of JSON. Settings default to those of the run.",
    )
    out.usage = "python -m deepsynth_min.evaluate --run DIR [--setting value ...]"
    add = out.add_argument
    # torchrun takes a `--run` for its own, wherever it stands; hence the second name.
    add(
        "--run",
        "--run-dir",
        dest="run",
        required=True,
        metavar="DIR",
        help="run directory of a training; under torchrun: --run-dir",
    )
    add(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last, best or a step number (default: last)",
    )
    add("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    add(
        "--threads",
        metavar="N",
        type=int,
        default=0,
        help="CPU threads per process; 0: as the run (default: 0)",
    )
    return out


def run(arguments: list[str]) -> dict[str, float]:
    """Prints the figures, and returns them."""
    given = parser().parse_args(arguments)
    directory = Path(given.run)
    settings = load_of_run(directory)
    settings = change(settings, **options.checked(vars(given), CONCERNS.values()))
    checkpoint = find_run_checkpoint(directory, given.checkpoint)
    world = start(given.device, given.threads or settings.run.threads)
    model, base = load_run_model(settings, directory, checkpoint, world.device)
    builder = SampleBuilder(settings, model.config, load_tokenizer(base))
    _, held_out = open_rows(settings.data, settings.optim.seed)
    precision = partial(autocast, world.device, settings.optim.precision)
    evaluator = Evaluator(model, held_out, builder, world, precision)
    figures, _ = evaluator()
    if world.is_main:
        print(json.dumps({"checkpoint": str(checkpoint), **figures}))
        notes = [ablations.warning(figures), None if evaluator.scorer else NO_ROUGE]
        for note in filter(None, notes):
            print(f"warning: {note}", file=sys.stderr)
    return figures


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop, let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
