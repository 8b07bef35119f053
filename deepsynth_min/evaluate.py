"""`python -m deepsynth_min.evaluate`: scores a run's checkpoint, or any model on any data.

In: --run DIR, its held-out rows and settings that differ from the run's; or --model with --data,
perhaps with --adapter. Out: one JSON line of figures on standard output (evaluation/figures.py
defines them); on standard error which of the run's checkpoints was scored, and warnings; with --out
the answers beside their references. With --read the answers are the texts on the pages themselves,
with --probes these texts as they are and spoilt in three ways (evaluation/probes.py): the figures
of each, and a table of them on standard error.
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from . import options
from .config_file import check_found
from .data.row import Row
from .data.rows import View
from .data.samples import SampleBuilder
from .data.sources import open_all, open_data
from .errors import UserError, exit_code
from .evaluation import ablations, needles, probes
from .evaluation.evaluator import Evaluator
from .files.disk import check_file, write_text, writing
from .options import OneLineParser, change
from .runs.open_model import OpenModel, add_model_options, open_model
from .runs.storage.taken import which_checkpoint
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
OTHER_HELP = {  # what means something else in training
    "data": "rows to score, one name: a file, a folder or a hub id of rows, embedded:NAME "
    "(default: the run's held-out rows)",
    "data_split": "split to score (default: validation, else test, else all of them)",
    "limit": "at most this many rows of --data; 0: all (default: 0)",
    "val_samples": "at most this many rows are scored; 0: all (default: with --data 0, else the "
    "run's)",
    "answer_samples": "rows that are answered; 0: none (default: with --out all, else the run's, "
    "else 8)",
    "ablation_samples": "rows for reads/...; 0: none (default: with --probes 0, else the run's, "
    "else 32)",
}


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
        other_help=OTHER_HELP,
    )
    out.usage = "python -m deepsynth_min.evaluate (--run DIR | --model DIR --data X) [options]"
    add_model_options(out)
    text = "write the answers to this new file, as JSON lines beside their references"
    out.add_argument("--out", metavar="FILE", default="", help=text)
    reads = out.add_mutually_exclusive_group()
    text = "score how well the model reads: the answer is the text on the page (--instruction: by "
    text += "default 'Free OCR.', of tiny-reader 'Read.')"
    reads.add_argument("--read", action="store_true", default=False, help=text)
    text = "score four readings: of the text, of its words shuffled, of the letters of each word "
    text += "shuffled, and of made-up words of the same letters"
    reads.add_argument("--probes", action="store_true", default=False, help=text)
    return out


def run(arguments: list[str]) -> dict[str, float]:
    """Prints the figures, and returns them."""
    given = parser().parse_args(arguments)
    values = options.checked(vars(given), CONCERNS.values())
    if given.model and "data" not in values:
        raise UserError("--model: say with --data which rows it is scored on")
    if "data" in values:
        values = {"val_samples": 0} | values
    if given.probes and given.out:
        raise UserError("--probes: has four sets of answers; give --read for --out")
    if given.probes:
        values = {"ablation_samples": 0} | values
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
        rows = View(rows, 0, min(len(rows), settings.data.val_samples or len(rows)))
        for note in data.notes if world.is_main else ():
            print(note, file=sys.stderr)
    else:
        check_found(Path(given.run) / "config.toml", settings, "data", "val_data")
        rows = open_data(settings.data, settings.optim.seed).held_out
        if not len(rows):
            raise UserError(f"{given.run}: holds nothing out (--val-fraction 0); give --data")
    if (given.read or given.probes) and "max_new_tokens" not in values:
        opened = with_answers_long_enough(opened, rows)
    prompt = getattr(given, "instruction", "") or probes.read_prompt(settings)
    if given.probes:
        return probe(opened, rows, prompt)
    rows = probes.Reading(rows, prompt) if given.read else rows
    evaluator = Evaluator(opened.model, rows, opened.builder, world, opened.precision)
    figures, answers = evaluator()
    answers = gather_lists(world, answers) if given.out else []
    if world.is_main:
        print(json.dumps({"checkpoint": str(opened.checkpoint), **figures}))
        if given.run:
            metric = settings.evaluation.best
            print(which_checkpoint(Path(given.run), opened.checkpoint, metric), file=sys.stderr)
        if found := needles.table(figures):
            print(found, file=sys.stderr)
        if note := ablations.warning(figures):
            print(f"warning: {note}", file=sys.stderr)
        if given.out:
            answers.sort(key=lambda answer: answer["number"])
            lines = [json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers]
            with writing("--out", given.out):
                write_text(Path(given.out), "".join(lines))
    return figures


def with_answers_long_enough(opened: OpenModel, rows: Sequence[Row]) -> OpenModel:
    """The model with settings by which no text that is read is cut."""
    first = View(rows, 0, min(len(rows), max(1, opened.settings.evaluation.answer_samples)))
    longest = probes.long_enough(first, opened.builder.tokenizer)
    settings = change(opened.settings, max_new_tokens=longest)
    builder = SampleBuilder(settings, opened.model.config, opened.builder.tokenizer)
    return replace(opened, settings=settings, builder=builder)


def probe(opened: OpenModel, rows: Sequence[Row], prompt: str) -> dict[str, dict[str, float]]:
    """Prints the figures of each probe, and returns them."""
    found, seed = {}, opened.settings.optim.seed
    for name in probes.PROBES:
        reading = probes.Reading(rows, prompt, name, seed)
        found[name], _ = Evaluator(
            opened.model, reading, opened.builder, opened.world, opened.precision
        )()
    if opened.world.is_main:
        print(probes.table(found), file=sys.stderr)
        print(json.dumps({"checkpoint": str(opened.checkpoint), "probes": found}))
    return found


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop, let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
