"""`python -m deepsynth_min.render FILE --out DIR`: see what the model will see, as PNG files.

In: a UTF-8 text file (or - for standard input) and any setting of PageStyle. Out: one PNG per page
and a line about each on standard output.

The idea: the options are made from PageStyle's fields, so none can be forgotten.
"""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

from .errors import UserError, exit_code, read_text
from .model.batch import visual_tokens
from .options import OneLineParser, choices_of, option_of
from .pages.png import png
from .pages.renderer import Pages, fit, render_pages
from .pages.style import PageStyle


def parser() -> OneLineParser:
    """The options of this command and, from PageStyle, those of the page."""
    out = OneLineParser(
        "python -m deepsynth_min.render",
        "python -m deepsynth_min.render FILE --out DIR [--setting value ...]",
        "Renders a text file to pages, as a model would get them, and writes them as PNG files.",
        allow_abbrev=False,
    )
    out.add_argument("file", metavar="FILE", help="UTF-8 text file, or - for standard input")
    out.add_argument("--out", required=True, metavar="DIR", help="for page-0001.png, ...")
    out.add_argument("--force", action="store_true", help="overwrite files that exist")
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
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: not UTF-8 at byte {error.start}") from None


def fitted(text: str, style: PageStyle, pages: int) -> PageStyle:
    """The style at the largest font size with which the text needs at most `pages` pages."""
    enough = min(pages, len(text) + 1)  # no text needs more
    size = fit(text, style, enough, style.min_font_size)
    if size is None:
        raise UserError(f"--fit: no font size from {style.min_font_size} on fits {pages} pages")
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
    line = f"{name}: characters {start}..{end} ({end - start}), {density}, {missing} missing glyphs"
    return line + (f", {unshaped} characters unshaped" if unshaped else "")


def write(pages: Pages, folder: Path, force: bool) -> None:
    """Writes page-0001.png, ... and prints a line about each. Raises UserError, before anything is
    written, if there is a file of that name, unless `force`; also if the folder takes no files."""
    files = [folder / f"page-{number + 1:04d}.png" for number in range(len(pages))]
    try:
        for file in files:
            if os.path.lexists(file) and not (force and file.is_file()):
                hint = "; --force overwrites" if file.is_file() else ", and is no file"
                raise UserError(f"{file}: exists{hint}")
        folder.mkdir(parents=True, exist_ok=True)
        for number, (file, image) in enumerate(zip(files, pages.images())):
            file.write_bytes(png(image))
            print(describe(pages, number, str(file)))
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise UserError(f"--out {folder}: {error}") from None


def run(arguments: list[str]) -> None:
    given = parser().parse_args(arguments)
    settings = {f.name: getattr(given, f.name) for f in fields(PageStyle)}
    try:
        style = PageStyle(**{name: value for name, value in settings.items() if value is not None})
        text = read_input(given.file)
        if given.fit is not None:
            style = fitted(text, style, given.fit)
        pages = render_pages(text, style)
        write(pages, Path(given.out), given.force)
    except ValueError as error:  # of the style, a font, or a text that the style does not allow
        raise UserError(str(error)) from None
    except MemoryError:
        raise UserError("not enough memory for so many pages; see --max-pages") from None
    if pages.truncated:
        print(f"truncated: {pages.truncated} characters are on no page")
    if pages.clipped:
        print(f"clipped: the page's edge cuts {pages.clipped} glyphs")


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
