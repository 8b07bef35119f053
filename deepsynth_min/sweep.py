"""`python -m deepsynth_min.sweep`: how well a model reads at which compression.

In: a model or a run, data, page sizes, font sizes, page styles. Out: in the new folder --out a line
of cells.jsonl for each cell of data x modes x font sizes x styles, sweep.html with a table of them
and precision over compression, and the table on standard output.

The one idea: a cell is an evaluation, by the same Evaluator as `evaluate` and with the same
figures, of rows whose answer is the text on their page (`evaluate --read`); --answers scores the
rows' own answers instead. A cell is done when its line is there: after an interruption the same
command goes on with the next one. torchrun -m: each cell's rows are divided over the processes.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path

from . import options
from .data.row import Row
from .data.samples import SampleBuilder
from .data.sources import open_all
from .errors import UserError, exit_code
from .evaluation.evaluator import Evaluator
from .evaluation.probes import Reading, long_enough, read_prompt
from .files.disk import append_whole, check_name, write_text, writing
from .options import OneLineParser, change
from .reports.sweep import page, table
from .runs.open_model import OpenModel, add_model_options, open_model
from .settings import DataSettings, GenerationSettings, PageSettings, Settings
from .training.distributed import barrier, broadcast_text, let_first_speak, stop

CONCERNS = {"data": DataSettings, "page": PageSettings, "generation": GenerationSettings}
# Axes of the sweep; what is of training alone; what is here set by another option.
NOT_HERE = ("data", "font_size", "val_data", "val_revision", "val_fraction", "val_samples")
NOT_HERE += ("instruction", "bucket", "workers", "prefetch", "feature_cache", "cache_memory")
NOT_HERE += ("cache_disk", "page_as", "limit", "on_too_long")
KEY = ("data", "mode", "font_size", "style", "task", "rows", "contents", "made_by")


def parser() -> OneLineParser:
    out = options.make_parser(
        CONCERNS,
        "python -m deepsynth_min.sweep",
        "Scores how well a model reads for each data set, page size, font size and page style: "
        "precision, character error rate and loss over text tokens per visual token.",
        without=NOT_HERE,
        of_run=True,
    )
    out.usage = "python -m deepsynth_min.sweep (--run DIR | --model DIR) --data X --out DIR ..."
    add_model_options(out)
    add = out.add_argument
    text = "rows to read; each name is an axis value of its own"
    add("--data", nargs="+", required=True, metavar="NAME", help=text)
    text = "page sizes, as --mode has them (default: the model's)"
    add("--modes", nargs="+", default=[], metavar="MODE", help=text)
    text = "px; 0: what the mode brings (default: 0)"
    add("--font-sizes", nargs="+", type=int, default=[0], metavar="N", help=text)
    text = "page settings of each style, as in ink=90,paper=200 (default: one, the run's)"
    add("--styles", nargs="+", default=[""], metavar="SETTING=VALUE,...", help=text)
    add("--rows", type=int, default=32, metavar="N", help="of each data set, the first (32)")
    text = "score the rows' own answers, not how their text is read"
    add("--answers", action="store_true", default=False, help=text)
    text = "folder of the results; one that is there is gone on with"
    add("--out", required=True, metavar="DIR", help=text)
    return out


def style_of(text: str) -> dict[str, object]:
    """ink=90,paper=200 -> page settings. Raises UserError."""
    known, found = {f.name: f for f in fields(PageSettings)}, {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if name not in known or not equals or name in ("font", "font_size", "page_as"):
            raise UserError(f"--styles {text}: {part!r} is no page setting and its value")
        kind = known[name].type
        try:
            value = json.loads(value) if kind in (int, float, bool) else value
        except ValueError:
            pass  # says what it should be
        found[name] = options.check(known[name], value, f"--styles {text}: ")
    return found


class Sweep:
    """The cells of a sweep, those that are done, and how another one is made."""

    def __init__(self, opened: OpenModel, given: object, values: dict[str, object]):
        self.opened, self.world, self.folder = opened, opened.world, Path(given.out)
        self.file, self.made_by = self.folder / "cells.jsonl", opened.fingerprint()
        self.limit_given = "max_new_tokens" in values
        self.task = "answers" if given.answers else "reading"
        self.prompt = getattr(given, "instruction", "") or read_prompt(opened.settings)
        self.contents: dict[str, str] = {}  # of each data set, a digest
        self.rows = {name: self._open(name, given) for name in given.data}
        modes = given.modes or [opened.settings.model.mode]
        axes = product(given.data, modes, given.font_sizes, given.styles)
        self.cells = [
            {"data": data, "mode": mode, "font_size": size, "style": style, "task": self.task}
            | {"rows": len(self.rows[data]), "contents": self.contents[data]}
            | {"made_by": self.made_by}
            for data, mode, size, style in axes
        ]
        for cell in self.cells:  # what cannot be is found before the first is measured
            self.builder(cell)

    def _open(self, name: str, given: object) -> Sequence[Row]:
        settings = change(self.opened.settings, data=(name,), limit=given.rows).data
        data = open_all(settings, self.world.is_main, "val")
        for note in data.notes if self.world.is_main else ():
            print(note, file=sys.stderr)
        signature = data.train.signature().encode()
        self.contents[name] = hashlib.sha256(signature).hexdigest()[:16]
        return data.train if given.answers else Reading(data.train, self.prompt)

    def settings(self, cell: dict) -> Settings:
        """Those of `evaluate` with the cell's mode, font size and style; a row that does not fit
        into the context is left out, and the figure `samples` says so."""
        changes = {"mode": cell["mode"], **style_of(cell["style"]), "on_too_long": "skip"}
        changes |= {"answer_samples": cell["rows"], "ablation_samples": 0, "unseen_style": ()}
        if cell["font_size"]:
            changes["font_size"] = cell["font_size"]
        if cell["task"] == "reading" and not self.limit_given:
            tokenizer = self.opened.builder.tokenizer
            changes["max_new_tokens"] = long_enough(self.rows[cell["data"]], tokenizer)
        return change(self.opened.settings, **changes)

    def builder(self, cell: dict) -> SampleBuilder:
        opened = self.opened
        return SampleBuilder(self.settings(cell), opened.model.config, opened.builder.tokenizer)

    def measure(self, cell: dict) -> dict[str, object]:
        """The cell with its figures; with an error where no row of it can be read."""
        opened = self.opened
        parts = (opened.model, self.rows[cell["data"]], self.builder(cell), self.world)
        evaluator = Evaluator(*parts, opened.precision)
        try:
            figures = evaluator.losses()
        except UserError as error:  # of all processes alike: summed over them
            if self.world.size > 1 and "no held-out row" not in str(error):
                raise
            return {**cell, "error": str(error)}
        began = time.perf_counter()
        more, _ = evaluator.answers()
        seconds = time.perf_counter() - began
        return {**cell, **figures, **more, "seconds_per_page": seconds / max(1, figures["pages"])}

    def done(self) -> list[dict]:
        """The cells that an earlier call has finished, as all processes see them. A last line that
        was cut off is not among them. Raises UserError for another file of that name."""
        text = ""
        if self.world.is_main and self.file.is_file():
            with writing("--out", self.file):
                text = self.file.read_text("utf-8", errors="replace")
                whole = text[: text.rfind("\n") + 1]
                if whole != text:
                    write_text(self.file, whole)
                text = whole
        lines = broadcast_text(self.world, text).splitlines()
        try:
            found = [json.loads(line) for line in lines]
            return [line for line in found if _key(line)]
        except (ValueError, TypeError, KeyError):
            raise UserError(f"--out {self.file}: not what this command writes") from None

    def run(self) -> list[dict]:
        """Measures what is not done yet; all cells with their figures."""
        known = {_key(line): line for line in self.done()}
        for number, cell in enumerate(self.cells, 1):
            if _key(cell) not in known:
                known[_key(cell)] = found = self.measure(cell)
                if self.world.is_main:
                    said = ", ".join(f"{name} {cell[name]}" for name in KEY[:4] if cell[name])
                    print(f"{number} of {len(self.cells)}: {said}", file=sys.stderr, flush=True)
                    with writing("--out", self.file), open(self.file, "ab", buffering=0) as file:
                        append_whole(file, json.dumps(found, ensure_ascii=False) + "\n")
                barrier(self.world)
        return [known[_key(cell)] for cell in self.cells]


def _key(cell: dict) -> tuple:
    """What tells a cell from others."""
    return tuple(cell[name] for name in KEY)


def run(arguments: list[str]) -> list[dict]:
    """Prints the table, and returns the cells."""
    given = parser().parse_args(arguments)
    values = options.checked(
        {name: value for name, value in vars(given).items() if name != "data"}, CONCERNS.values()
    )
    if given.rows < 1:
        raise UserError(f"--rows {given.rows}: is below 1")
    check_name("--out", given.out)
    opened = open_model(given, values)
    sweep = Sweep(opened, given, values)
    if opened.world.is_main:
        with writing("--out", given.out):
            os.makedirs(given.out, exist_ok=True)
    barrier(opened.world)
    cells = sweep.run()
    if opened.world.is_main:
        with writing("--out", given.out):
            write_text(sweep.folder / "sweep.html", page(cells, given.run or given.model))
        print(table(cells))
        print(sweep.folder / "sweep.html")
    return cells


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments, stop, let_first_speak)


if __name__ == "__main__":
    sys.exit(main())
