"""`python -m deepsynth_min.render FILE --out DIR`: a text's pages in any style, as PNG files.
`python -m deepsynth_min.render --data NAME --to FILE.parquet`: the pages of rows, for others.

In: a UTF-8 text file (or - for standard input) and any setting of PageStyle. Out: one PNG per page
and a line about each on standard output. No model is asked: pages are 1024 px with 16 px type
unless said otherwise. Or in: rows, and the settings of a run that decide what their pages look
like. Out: text, summary and pages of each (publish/page_table.py), as the model sees them.

The idea: the options are made from PageStyle's fields, so none can be forgotten; those for rows
from a run's settings, and the pages are made by the SampleBuilder that training uses.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from . import options, style_json
from .command_line import load_of_run
from .config_file import check_found
from .data.row import Row, RowError
from .data.samples import SampleBuilder, draw
from .data.sources import open_all, pinned
from .data.tokenizer import EMBEDDED, load_tokenizer
from .errors import UserError, exit_code, not_utf8, number_of, read_text
from .files.disk import check_name, write_bytes, write_text, writing
from .model.batch import visual_tokens
from .model.shape.config import ModelConfig
from .model.shape.presets import find_shape, shape_of
from .options import OneLineParser, change, choices_of, option_of
from .pages.png import png
from .pages.renderer import Pages, cores, fit, render_pages
from .pages.scripts import complaints, kerning_complaint
from .pages.style import PageStyle
from .publish.page_table import PageTable
from .runs import recorded
from .runs.announce import drawing_faults
from .runs.storage.run_directory import find_run_checkpoint
from .settings import DataSettings, ModelSettings, PageSettings, Settings
from .training.build import base_of, is_adapted


def parser() -> OneLineParser:
    """The options of this command and, from PageStyle, those of the page."""
    out = OneLineParser(
        "python -m deepsynth_min.render",
        "python -m deepsynth_min.render FILE --out DIR [--setting value ...]",
        "Renders a text file to pages in the style that the options say (a model's own: --data), "
        "and writes them as PNG files. With --data NAME --to FILE.parquet the pages of rows, as a "
        "model or a run would see them, as a table: --data NAME --help.",
        allow_abbrev=False,
    )
    out.add_argument("file", metavar="FILE", help="UTF-8 text file, or - for standard input")
    out.add_argument("--out", required=True, metavar="DIR", help="for page-0001.png, ...")
    out.add_argument("--force", action="store_true", help="overwrite files that exist")
    out.add_argument("--style-json", metavar="FILE", help="settings of a config.json of Glyph's")
    out.add_argument(
        "--fit",
        type=int,
        metavar="PAGES",
        help="use the largest font size (from --min-font-size to 64) that needs at most PAGES",
    )
    page = out.add_argument_group("page", "sizes in pixels unless said otherwise")
    for f in fields(PageStyle):
        text = f"{f.metadata['help']} (default: {f.default!r})".replace("%", "%%")
        if f.name == "fonts":
            page.add_argument(
                "--font",
                dest="fonts",
                action="append",
                metavar="FILE",
                help=f"{f.metadata['help']}; may be given several times",
            )
        elif f.type is bool:
            page.add_argument(option_of(f.name), action=argparse.BooleanOptionalAction, help=text)
        elif choices := choices_of(f.type):  # PageStyle checks them
            page.add_argument(option_of(f.name), metavar=f"{{{','.join(choices)}}}", help=text)
        else:
            metavar = {int: "N", float: "X", str: "TEXT"}[f.type]
            page.add_argument(option_of(f.name), type=f.type, metavar=metavar, help=text)
    return out


def read_input(name: str) -> str:
    """Content of a UTF-8 file or of standard input (-). Raises UserError."""
    if name != "-":
        return read_text(name)
    data = sys.stdin.buffer.read()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: {not_utf8(data, error)}") from None


def fitted(text: str, style: PageStyle, pages: int) -> PageStyle:
    """The style at the largest font size with which the text needs at most `pages` pages."""
    enough = min(pages, len(text) + 1)  # no text needs more
    size = fit(text, style, enough, style.min_font_size)
    if size is None:
        raise UserError(
            f"--fit: no font size from {style.min_font_size} on fits {number_of(pages, 'page')}"
        )
    print(f"font size {size}")
    return style.at_size(size)


def describe(pages: Pages, number: int, name: str) -> str:
    """The line about page `number`, which is written to the file `name`."""
    start, end = pages.ranges[number].tolist()
    width, height = pages.style.width, pages.style.height
    density = "no visual tokens (not a square of a multiple of 64)"
    if width == height and width % 64 == 0:
        tokens = visual_tokens(height, width)
        density = f"{tokens} visual tokens, {(end - start) / tokens:.2f} characters each"
    missing, unshaped = (
        int(np.count_nonzero((at >= start) & (at < end))) for at in (pages.missing, pages.unshaped)
    )
    line = f"{name}: characters {start}..{end} ({end - start}), {density}, "
    line += number_of(missing, "missing glyph")
    return line + (f", {number_of(unshaped, 'character')} unshaped" if unshaped else "")


def write(pages: Pages, folder: Path, force: bool) -> None:
    """Writes page-0001.png, ... and prints a line about each. Raises UserError, before anything is
    written, if there is a file of that name, unless `force`; also if the folder takes no files."""
    files = [folder / f"page-{number + 1:04d}.png" for number in range(len(pages))]
    with writing("--out", folder):
        for file in files:
            if os.path.lexists(file) and not (force and file.is_file()):
                hint = "; --force overwrites" if file.is_file() else ", and is no file"
                raise UserError(f"{file}: exists{hint}")
        folder.mkdir(parents=True, exist_ok=True)
    for number, (file, image) in enumerate(zip(files, pages.images())):
        with writing("--out", folder):
            write_bytes(file, png(image))
        print(describe(pages, number, str(file)))


# -- pages of rows --------------------------------------------------------------------------------

NOT_OF_ROWS = {  # settings of a run that no page depends on
    *("tune", "val_data", "val_revision", "val_fraction", "val_samples", "bucket", "workers"),
    *("prefetch", "feature_cache", "cache_memory", "cache_disk", "max_tiles"),
}
CONCERNS = {"model": ModelSettings, "data": DataSettings, "page": PageSettings}


def rows_parser() -> OneLineParser:
    """The options for --data: those settings of a run that decide what its pages look like."""
    out = options.make_parser(
        CONCERNS,
        "python -m deepsynth_min.render",
        "Draws the rows of a data set as a run with the same settings would, or as a model was "
        "trained to see them (its deepsynth_min.toml), and writes text, answer and pages to a "
        "Parquet file that `datasets` reads.",
        NOT_OF_ROWS,
    )
    out.usage = "python -m deepsynth_min.render --data NAME --to FILE.parquet [--setting value ...]"
    add = out.add_argument
    add("--to", required=True, metavar="FILE", help="the table; a large one: FILE-00000-of-N, ...")
    add("--run", default="", metavar="DIR", help="take settings and model from this run")
    for side in ("width", "height"):
        text = "px, in place of --mode; of texts only, and as many pages as they need"
        add(f"--{side}", type=int, default=0, metavar="N", help=text)
    text = "threads that draw; 0: one per core (default: 0)"
    add("--workers", dest="threads", type=int, default=0, metavar="N", help=text)
    text = "megabytes of a file, above which the table is divided (default: 500)"
    add("--file-mb", type=int, default=500, metavar="N", help=text)
    text = "overwrite a table, remove the parts of another"
    add("--force", action="store_true", default=False, help=text)
    return out


def model_of(settings: Settings, run: str) -> tuple[ModelConfig, Path]:
    """(shape of the model, directory of its tokenizer); no weights are read. Raises UserError."""
    if not run:
        config, folder = find_shape(settings.model)
        return config, folder or EMBEDDED
    adapted, folder = is_adapted(settings.model.tune), Path(run)
    folder = base_of(settings, folder) if adapted else find_run_checkpoint(folder, "last")
    return shape_of(settings.model, folder), folder


def drawing(builder: SampleBuilder, width: int, height: int) -> Callable[[Row], tuple]:
    """Row -> (pages, characters not drawn as they should): what the model sees of it; or its text
    on pages of another size, which no model's context bounds."""
    if not width and not height:

        def as_the_model_sees(row: Row) -> tuple[np.ndarray, int]:
            sample = builder(row)
            return sample.pages, sample.missing

        return as_the_model_sees
    page = builder.settings.page
    try:
        style = replace(builder.style, width=width, height=height, max_pages=page.max_pages)
    except ValueError as error:
        raise UserError(f"page settings: {error}") from None

    def on_other_pages(row: Row) -> tuple[np.ndarray, int]:
        if row.text is None:
            raise RowError(row.where, "no text; --width and --height are for texts", "no text")
        drawn, missing = draw(row.text, style, row.where)
        return drawn.pages[:, None], missing

    return on_other_pages


def write_rows(arguments: list[str]) -> None:
    """--data: draws rows into a table, and says what became of them."""
    given = rows_parser().parse_args(arguments)
    least = {"width": 0, "height": 0, "workers": 0, "file_mb": 1}
    numbers = {"workers": given.threads} | vars(given)
    for name in least:
        if numbers[name] < least[name]:
            raise UserError(f"{option_of(name)}: {numbers[name]} is below {least[name]}")
    if bool(given.width) != bool(given.height):
        raise UserError("--width, --height: give both")
    check_name("--to", given.to)
    if not given.to.endswith(".parquet"):
        raise UserError(f"--to {given.to}: the name must end in .parquet")
    asked = options.checked(vars(given), CONCERNS.values())
    settings = load_of_run(Path(given.run)) if given.run else Settings()
    settings = change(settings, **asked)
    if given.run:
        check_found(Path(given.run) / "config.toml", settings, "main_font", "font")
    config, folder = model_of(settings, given.run)
    if not given.run:  # as the model was trained to see pages, if it says how
        found = recorded.read(folder)
        for line in recorded.check_fonts(found, asked, settings.model.model):
            print(f"warning: {line}")
        settings = change(settings, **found | asked)
    builder = SampleBuilder(settings, config, load_tokenizer(folder))
    if builder.gundam:
        raise UserError("--mode gundam: its pages are views with tiles; --width and --height")
    settings = change(settings, data_revision=pinned(settings.data).data_revision)
    data = open_all(settings.data, progress=True)
    for line in data.notes:
        print(line)
    plan = {
        "model": [settings.model.model, builder.side, builder.context, asdict(config.text)],
        "size": [given.width, given.height],
        "style": builder.style.fingerprint(),
        "settings": {
            name: value
            for part in (settings.data, settings.page)
            for name, value in asdict(part).items()
            if name not in NOT_OF_ROWS
        },
        "rows": len(data.train),
        "data": data.train.signature(),
        "file_mb": given.file_mb,
    }
    draw = drawing(builder, given.width, given.height)
    instructed = any(rows.columns.instruction or rows.columns.chat for rows in data.files)
    table = PageTable(Path(given.to), draw, builder.skips, instructed, given.file_mb * 10**6)
    workers, max_bad = given.threads or cores(), settings.data.max_bad
    done = table.write(data.train, plan, workers, given.force, max_bad)
    left_out = [*data.faults, *done.left_out]
    for file in done.files:
        print(file)
    rows, pages = number_of(done.rows, "row"), number_of(done.pages, "page")
    print(f"{rows} with {pages} in {number_of(len(done.files), 'file')}")
    if left_out:
        note = Path(f"{given.to}.left-out.txt")
        with writing("--to", note):
            write_text(note, "".join(f"{fault.where}: {fault.reason}\n" for fault in left_out))
        print(f"left out: {number_of(len(left_out), 'row')}; listed in {note}")
    if done.missing:
        print(f"not drawn as they should: {number_of(done.missing, 'character')}")
    for line in drawing_faults(data.train, builder.style):
        print(f"warning: {line}")


def run(arguments: list[str]) -> None:
    if any(word.split("=")[0] in ("--data", "--to", "--run") for word in arguments):
        write_rows(arguments)
        return
    given = parser().parse_args(arguments)
    asked = {f.name: getattr(given, f.name) for f in fields(PageStyle)}
    settings, left_out = style_json.read(given.style_json) if given.style_json else ({}, [])
    for note in left_out:
        print(f"--style-json {given.style_json}: left out: {note}")
    settings |= {name: value for name, value in asked.items() if value is not None}
    try:
        style = PageStyle(**settings)
        text = read_input(given.file)
        if given.fit is not None:
            style = fitted(text, style, given.fit)
        pages = render_pages(text, style)
        write(pages, Path(given.out), given.force)
        for line in filter(None, [*complaints([text], style), kerning_complaint(style)]):
            print(f"warning: {line}")
    except ValueError as error:  # of the style, a font, or a text that the style does not allow
        raise UserError(str(error)) from None
    except MemoryError:
        raise UserError("not enough memory for so many pages; see --max-pages") from None
    if pages.truncated:
        print(f"truncated: {number_of(pages.truncated, 'character')} on no page")
    if pages.clipped:
        print(f"clipped: the page's edge cuts {number_of(pages.clipped, 'glyph')}")


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
