"""`python -m deepsynth_min.evaluate --run DIR`: scores a run's checkpoint in a new process.

In: a run directory, and settings that differ from the run's. Out: one JSON line of figures on
stdout (evaluation/evaluator.py names them), warnings on stderr.
"""

import json
import os
import sys
from functools import partial
from pathlib import Path

from . import options, settings as settings_
from .data.rows import open_rows
from .data.samples import SampleBuilder
from .data.tokenizer import load_tokenizer
from .errors import UserError, exit_code
from .evaluation import ablations
from .evaluation.evaluator import NO_ROUGE, Evaluator
from .options import change
from .settings import EvaluationSettings, GenerationSettings
from .training.build import load_run_model
from .training.distributed import let_first_speak, start, stop
from .training.precision import autocast
from .training.run_directory import find_run_checkpoint


def run(arguments: list[str]) -> dict[str, float]:
    concerns = {"evaluation": EvaluationSettings, "generation": GenerationSettings}
    parser = options.make_parser(
        concerns,
        "python -m deepsynth_min.evaluate",
        "Scores a checkpoint of a run on the run's held-out rows. "
        "Settings default to those of the run.",
    )
    parser.usage = "python -m deepsynth_min.evaluate --run DIR [--setting value ...]"
    # torchrun takes a `--run` for its own, wherever it stands; hence the second name.
    parser.add_argument(
        "--run",
        "--run-dir",
        dest="run",
        required=True,
        metavar="DIR",
        help="run directory of a training; under torchrun: --run-dir",
    )
    parser.add_argument(
        "--checkpoint",
        default="last",
        metavar="WHICH",
        help="last, best or a step number (default: last)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, ... (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads per process; 0: all")
    given = parser.parse_args(arguments)
    directory = Path(given.run)
    if not os.path.isfile(directory / "config.toml"):
        raise UserError(f"{directory}: not a run directory (no config.toml)")
    settings = settings_.load(directory / "config.toml")
    settings = change(settings, **options.checked(vars(given), concerns.values()))
    checkpoint = find_run_checkpoint(directory, given.checkpoint)
    world = start(given.device, given.threads or settings.run.threads)
    model, base = load_run_model(settings, directory, checkpoint, world.device)
    builder = SampleBuilder(settings, model.config, load_tokenizer(base))
    _, held_out = open_rows(settings.data, settings.optim.seed)
    evaluator = Evaluator(
        model, held_out, builder, world, partial(autocast, world.device, settings.optim.precision)
    )
    result, _ = evaluator()
    if world.is_main:
        print(json.dumps({"checkpoint": str(checkpoint), **result}))
        notes = [ablations.warning(result), None if evaluator.scorer else NO_ROUGE]
        for note in filter(None, notes):
            print(f"warning: {note}", file=sys.stderr)
    return result


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop, let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
