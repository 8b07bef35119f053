"""`python -m deepsynth_min.render FILE --out DIR`: see what the model will see, as PNG files.

In: a UTF-8 text file (or - for standard input) and any setting of PageStyle. Out: one PNG per page
and a line about it; exit code 2 and one line for a user's mistake. The one idea: the options are
made from PageStyle's fields and their comments, so none can be forgotten.
"""

import argparse
import inspect
import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np

from .errors import UserError, one_line, read_text as read_file
from .pages.png import png
from .pages.renderer import Pages, fit, render_pages
from .pages.style import PageStyle


def visual_tokens(width: int, height: int) -> int | None:
    """Tokens that the encoder makes of a page, None if it takes no such page (facts: q*(q+1)+1)."""
    side = width // 64
    return side * (side + 1) + 1 if width == height and width % 64 == 0 else None


def describe(pages: Pages, number: int, name: str) -> str:
    """The line about one page."""
    start, end = pages.ranges[number].tolist()
    tokens = visual_tokens(pages.style.width, pages.style.height)
    inside = [
        int(np.count_nonzero((at >= start) & (at < end))) for at in (pages.missing, pages.unshaped)
    ]
    density = (
        f"{tokens} visual tokens, {(end - start) / tokens:.2f} characters each"
        if tokens
        else "no visual tokens (not a square of a multiple of 64)"
    )
    line = (
        f"{name}: characters {start}..{end} ({end - start}), {density}, {inside[0]} missing glyphs"
    )
    return line + (f", {inside[1]} characters unshaped" if inside[1] else "")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"error: {one_line(message)}\n")


def parser() -> argparse.ArgumentParser:
    """Options of the preview and, from PageStyle, of the page."""
    about = "Render a text file to pages and write them as PNG files."
    out = _Parser(prog="python -m deepsynth_min.render", description=about, allow_abbrev=False)
    out.add_argument("file", help="UTF-8 text file, or - for standard input")
    out.add_argument("--out", required=True, help="directory for page-0001.png, ...")
    out.add_argument("--force", action="store_true", help="overwrite files that exist")
    out.add_argument(
        "--fit",
        type=int,
        metavar="PAGES",
        help="use the largest font size (min-font-size to 64) that fits PAGES",
    )
    notes = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(PageStyle), re.M))
    for field in fields(PageStyle):
        flag = "--" + field.name.replace("_", "-")
        shown = f"{notes.get(field.name, 'per page')} [{field.default}]".replace("%", "%%")
        if field.name == "fonts":
            out.add_argument(
                "--font",
                dest="fonts",
                action="append",
                metavar="FILE",
                help="font file for what those before lack; repeatable",
            )
        elif isinstance(field.default, bool):
            out.add_argument(flag, action=argparse.BooleanOptionalAction, help=shown)
        else:
            out.add_argument(flag, type=type(field.default), help=shown)
    return out


def read_text(name: str) -> str:
    """Content of a UTF-8 file or of standard input; ValueError names the file and the byte."""
    try:
        return sys.stdin.buffer.read().decode("utf-8") if name == "-" else read_file(name)
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 at byte {error.start}") from None


def render_file(args: argparse.Namespace) -> None:
    given = {field.name: getattr(args, field.name) for field in fields(PageStyle)}
    style = PageStyle(**{name: value for name, value in given.items() if value is not None})
    text, folder = read_text(args.file), Path(args.out)
    if args.fit is not None:
        enough = min(args.fit, len(text) + 1)  # no text needs more pages
        size = fit(text, style, enough, style.min_font_size)
        if size is None:
            raise ValueError(
                f"--fit: no font size from {style.min_font_size} on fits {args.fit} pages"
            )
        print(f"font size {size}")
        style = style.at_size(size)
    pages = render_pages(text, style)
    files = [folder / f"page-{number + 1:04d}.png" for number in range(len(pages))]
    try:
        for file in files:  # all of them, before one is written
            if os.path.lexists(file) and not (args.force and file.is_file()):
                hint = "; --force overwrites" if file.is_file() else ", and is no file"
                raise UserError(f"{file}: exists{hint}")
        folder.mkdir(parents=True, exist_ok=True)
        for number, (file, image) in enumerate(zip(files, pages.images())):
            file.write_bytes(png(image))
            print(describe(pages, number, str(file)))
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a name with a NUL
        raise ValueError(f"--out {folder}: {error}") from None
    if pages.truncated:
        print(f"truncated: {pages.truncated} characters are on no page")
    if pages.clipped:
        print(f"clipped: the page's edge cuts {pages.clipped} glyphs")


def main(argv: list[str] | None = None) -> int:
    arguments = parser()
    try:
        render_file(arguments.parse_args(argv))
    except ValueError as error:
        arguments.error(str(error))
    except MemoryError:
        arguments.error("not enough memory for so many pages; see --max-pages")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
