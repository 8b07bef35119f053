"""`python -m deepsynth_min.evaluate`: scores a run's checkpoint, or any model on any data.

In: --run DIR, its held-out rows and settings that differ from the run's; or --model with --data,
perhaps with --adapter. Out: one JSON line of figures on standard output (evaluation/figures.py
defines them); on standard error which of the run's checkpoints was scored, and warnings; with --out
the answers beside their references.
"""

import json
import os
import sys
from pathlib import Path

from . import options
from .config_file import check_found
from .data.sources import open_all, open_data
from .errors import UserError, exit_code
from .evaluation import ablations
from .evaluation.evaluator import Evaluator
from .files.disk import check_file, write_text, writing
from .options import OneLineParser
from .runs.open_model import add_model_options, open_model
from .runs.taken import which_checkpoint
from .settings import DataSettings, EvaluationSettings, GenerationSettings, PageSettings
from .training.distributed import gather_lists, let_first_speak, stop

CONCERNS = {
    "data": DataSettings,
    "page": PageSettings,
    "evaluation": EvaluationSettings,
    "generation": GenerationSettings,
}
# Of training alone; what is here set by another option.
NOT_HERE = ("val_data", "val_revision", "val_fraction", "best", "patience", "instruction")
NOT_HERE += ("bucket", "workers", "prefetch", "feature_cache", "cache_memory", "cache_disk")


def parser() -> OneLineParser:
    """The options of this command and those settings of a run that concern evaluation."""
    out = options.make_parser(
        CONCERNS,
        "python -m deepsynth_min.evaluate",
        "Scores a checkpoint of a run on the run's held-out rows, or a model on --data (its "
        "validation split, or its test split, if it has splits), and prints the figures as a line "
        "of JSON. Settings default to those of the run, or those that model or adapter bring in "
        "deepsynth_min.toml.",
        without=NOT_HERE,
        of_run=True,
    )
    out.usage = "python -m deepsynth_min.evaluate (--run DIR | --model DIR --data X) [options]"
    add_model_options(out)
    text = "write the answers to this new file, as JSON lines beside their references"
    out.add_argument("--out", metavar="FILE", default="", help=text)
    return out


def run(arguments: list[str]) -> dict[str, float]:
    """Prints the figures, and returns them."""
    given = parser().parse_args(arguments)
    values = options.checked(vars(given), CONCERNS.values())
    if given.model and "data" not in values:
        raise UserError("--model: say with --data which rows it is scored on")
    if "data" in values:
        values = {"val_samples": 0} | values
    if given.out:
        values = {"answer_samples": sys.maxsize // 2} | values
        check_file("--out", given.out)
        if os.path.lexists(given.out):
            raise UserError(f"--out {given.out}: File exists")
    opened = open_model(given, values)
    settings, world = opened.settings, opened.world
    if "data" in values:
        data = open_all(settings.data, world.is_main, "val")
        rows = data.train
        for note in data.notes if world.is_main else ():
            print(note, file=sys.stderr)
    else:
        check_found(Path(given.run) / "config.toml", settings, "data", "val_data")
        rows = open_data(settings.data, settings.optim.seed).held_out
        if not len(rows):
            raise UserError(f"{given.run}: holds nothing out (--val-fraction 0); give --data")
    evaluator = Evaluator(opened.model, rows, opened.builder, world, opened.precision)
    figures, answers = evaluator()
    answers = gather_lists(world, answers) if given.out else []
    if world.is_main:
        print(json.dumps({"checkpoint": str(opened.checkpoint), **figures}))
        if given.run:
            metric = settings.evaluation.best
            print(which_checkpoint(Path(given.run), opened.checkpoint, metric), file=sys.stderr)
        if note := ablations.warning(figures):
            print(f"warning: {note}", file=sys.stderr)
        if given.out:
            answers.sort(key=lambda answer: answer["number"])
            lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
            with writing("--out", given.out):
                write_text(Path(given.out), "".join(lines))
    return figures


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop, let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
