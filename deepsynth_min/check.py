"""`python -m deepsynth_min.check --data X`: reads all data as training would, before it trains.

In: the options of a training, so that its command line is checked by changing one word. Out: tables
on standard output and one HTML page; exit code 0 if training would start and get through an epoch,
2 with one line if something would stop it.

The one idea: every row is read, drawn and tokenised by training's own code
(inspection/statistics.py), and bad ones are counted instead of ending it. Of the model only
configuration and tokenizer are read.
"""

import sys
from dataclasses import replace
from pathlib import Path

from . import command_line
from .data.rows import is_skipped
from .data.sources import open_data, pinned
from .errors import UserError, exit_code, one_line
from .files.disk import check_page, write_text, writing
from .inspection.page import data_page
from .inspection.statistics import Statistics, collect
from .inspection.table import as_text, sections
from .options import OneLineParser, change
from .settings import Settings
from .training.build import accumulation
from .training.micro_batch import with_auto

PAGE = "data-check.html"


def parser() -> OneLineParser:
    """The options of a training, and this command's own."""
    out = command_line.make_parser(
        "python -m deepsynth_min.check",
        "Reads all data as training would and says what is in it: bad rows, sizes, characters that "
        "no font has, duplicates, steps of an epoch. Takes the options of a training, so that its "
        "command line is checked by changing one word; those about saving and logging do nothing.",
    )
    out.usage = "python -m deepsynth_min.check [--data X] [--html FILE] [--setting value ...]"
    workers = next(a for a in out._actions if a.dest == "workers")
    workers.help = "processes that read (default: as many as cores, if there are rows for them)"
    group = out.add_argument_group("this command")
    group.add_argument(
        "--processes", metavar="N", type=int, help="GPUs that the training will have (default: 1)"
    )
    group.add_argument(
        "--html", metavar="FILE", help=f"where the page goes; none: no page (default: {PAGE})"
    )
    return out


def lenient(settings: Settings) -> Settings:
    """The settings with which every bad row is skipped, to be counted."""
    cut = settings.data.on_too_long == "truncate"
    return change(
        settings, on_bad_row="skip", max_bad=1.0, on_too_long="truncate" if cut else "skip"
    )


def read(settings: Settings, workers: int) -> Statistics:
    """Raises UserError where there is nothing to count."""
    try:
        return collect(lenient(settings), workers, progress=True)
    except UserError:
        open_data(settings.data, settings.optim.seed)  # may say better what is wrong
        raise


def obstacle(settings: Settings, statistics: Statistics) -> str:
    """What would stop a training with these settings within an epoch; "" if nothing would."""
    data = settings.data
    if statistics.data.faults:
        try:
            open_data(data, settings.optim.seed)
        except UserError as error:
            return str(error)
    for part in (statistics.train, statistics.held_out):
        for bad in part.bad:
            if not is_skipped(data, bad.too_long):
                option = "--on-too-long" if bad.too_long else "--on-bad-row"
                return f"{bad.fault.where}: {bad.fault.reason} ({option} skip leaves it out)"
    rows = len(statistics.data.train) + len(statistics.data.faults)
    if len(statistics.bad) > data.max_bad * rows:
        return (
            f"{len(statistics.bad):,} of {rows:,} rows cannot be used, more than "
            f"--max-bad {data.max_bad:g}"
        )
    if len(statistics.data.held_out) and not len(statistics.held_out.numbers):
        return "no held-out row can be used; give others with --val-data"
    return ""


def run(arguments: list[str]) -> None:
    given = vars(parser().parse_args(arguments))
    processes, out = given.pop("processes", 1), given.pop("html", PAGE)
    if processes < 1:
        raise UserError(f"--processes: {processes} is below 1")
    if out != "none":
        check_page("--html", out)
    settings = command_line.complete(given)
    settings = change(settings, batch_size=with_auto(settings.optim, processes, "cpu"))
    settings = change(settings, accumulate=accumulation(settings.optim, processes))
    workers = settings.data.workers if "workers" in given else 0
    settings = replace(settings, data=pinned(settings.data))
    statistics = read(settings, workers)
    found = sections(statistics, settings, processes)
    for section in found:
        print("\n".join(one_line(line) for line in as_text(section).split("\n")) + "\n")
    stopped_by = obstacle(settings, statistics)
    if out != "none":
        page = data_page(statistics, found, stopped_by)
        with writing("--html", out):
            write_text(Path(out), page)
        print(f"histograms and the strangest rows: {out}")
    if stopped_by:
        raise UserError(stopped_by)
    print("training would start")


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
