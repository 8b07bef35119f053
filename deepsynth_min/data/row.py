"""One row of the user's data, whatever file it stands in: named values -> a checked `Row`.

In: the values of one row by field name, and where it stands. Out: a `Row`, or a UserError naming
the place and the field.

The one idea: JSON lines and Parquet give the same kind of thing, so one function decides what a row
may be and says what is wrong with it. A row has an answer and either a text or images; images are
paths, which may not leave the data's folder unless allowed, or the bytes of an image file.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, find_file
from ..settings import DataSettings


@dataclass(frozen=True)
class Row:
    """One sample as the user wrote it: a text or images, and the answer."""

    where: str  # file:line or file:row, for messages
    summary: str
    text: str | None = None
    images: tuple[Path | bytes, ...] = ()
    instruction: str | None = None


@dataclass(frozen=True)
class Place:
    """Where rows come from: image paths are relative to `folder` and may not leave `root`."""

    folder: Path
    root: Path


def parse_row(
    values: dict, where: str, place: Place, names: DataSettings, answered: bool = True
) -> Row:
    """answered: whether there must be an answer; without, it is "" where there is none."""
    given = answered or names.summary_field in values
    summary = text_of(values, names.summary_field, where) if given else ""
    instruction = None
    if values.get(names.instruction_field) is not None:
        instruction = text_of(values, names.instruction_field, where)
    sources = dict.fromkeys((names.text_field, "image", "images"))
    sources = [name for name in sources if values.get(name) is not None]
    if len(sources) > 1:
        raise UserError(f"{where}: both {sources[0]!r} and {sources[1]!r}; a row has one")
    if not sources or sources[0] == names.text_field:
        return Row(where, summary, text_of(values, names.text_field, where), (), instruction)
    given = values[sources[0]]
    images = given if isinstance(given, list) else [given]
    if not images or not all(isinstance(image, str | bytes) for image in images):
        raise UserError(f"{where}: image is a path, images a list of paths")
    found = tuple(_image(image, where, place, names) for image in images)
    return Row(where, summary, None, found, instruction)


def _image(image: str | bytes, where: str, place: Place, names: DataSettings) -> Path | bytes:
    if isinstance(image, bytes):
        if not image:
            raise UserError(f"{where}: an image of no bytes")
        return image
    path = place.folder / image
    try:
        inside = path.resolve().is_relative_to(place.root.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a circle of links
        raise UserError(f"{where}: image {image!r:.200}: not a possible file name") from None
    if not names.images_anywhere and not inside:
        raise UserError(
            f"{where}: image {image!r} is outside of the data folder; --images-anywhere allows it"
        )
    return find_file(path, f"{where}: ", "no such image")


def text_of(values: dict, name: str, where: str) -> str:
    """A field that must be a text with something in it."""
    if name not in values:
        found = ", ".join(map(repr, list(values)[:10])) + (", ..." if len(values) > 10 else "")
        raise UserError(f"{where}: no field {name!r}; found: {found}")
    text = values[name]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {name!r} is a {type(text).__name__}, not a text")
    if not text.strip():
        raise UserError(f"{where}: field {name!r} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: field {name!r} is not valid Unicode ({error.reason})") from None
    return text
