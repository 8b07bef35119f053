"""One row of the user's data, whatever file it stands in: named values -> a checked `Row`.

In: the values of one row by field name, where it stands, and which field is what (columns.py). Out:
a `Row`, or a RowError naming the place and what is wrong.

The one idea: every format gives the same kind of thing, so one function decides what a row may be.
A row is an answer, and a page to answer from: a text that is drawn, or images; or, without a page,
an instruction. Images are paths, which may not leave the data's folder unless allowed, or the bytes
of an image file.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, find_file, json_kind, not_utf8, number_of
from .formats import chat
from .formats.columns import Columns, is_image

PLACEHOLDER = "<image>"  # where other trainers' prompts have the page


class RowError(UserError):
    """A row that cannot be used: where it stands, why, and which kind of fault that is."""

    def __init__(self, where: str, reason: str, kind: str = ""):
        super().__init__(f"{where}: {reason}")
        self.where, self.reason, self.kind = where, reason, kind or reason


class TooLong(RowError):
    """A row that is sound but does not fit into the model's context (--on-too-long)."""

    def __init__(self, where: str, reason: str):
        super().__init__(where, reason, "too long for the model's context")


@dataclass(frozen=True)
class Row:
    """One sample as the user wrote it: a text or images or neither, and the answer."""

    where: str  # file:line or file:row, for messages
    summary: str
    text: str | None = None
    images: tuple[Path | bytes, ...] = ()
    instruction: str | None = None
    needle: tuple[float, int] | None = None  # of embedded:needles: depth of its fact, length


@dataclass(frozen=True)
class Place:
    """Where rows come from: image paths are relative to `folder` and may not leave `root`."""

    folder: Path
    root: Path
    anywhere: bool = False  # unless this allows it


def parse_row(
    values: dict[str, Any], where: str, place: Place, columns: Columns, answered: bool = True
) -> Row:
    """answered: whether there must be an answer; without, it is "" where there is none.

    Raises RowError.
    """
    if columns.chat:
        row = _chat_row(values, where, place, columns, answered)
    else:
        row = _plain_row(values, where, place, columns, answered)
    if row.instruction is not None:
        prompt_after_pages(row.instruction, len(row.images), where)
    return row


def _plain_row(
    values: dict[str, Any], where: str, place: Place, columns: Columns, answered: bool
) -> Row:
    given = answered or columns.answer in values
    summary = text_of(values, columns.answer, where) if given else ""
    instruction = None
    if values.get(columns.instruction) is not None:
        instruction = text_of(values, columns.instruction, where)
    images, text = _images_given(values, where, columns), values.get(columns.text)
    if images != [] and (text is None or columns.page_from == "image"):
        return Row(where, summary, None, _images(images, where, place), instruction)
    if text is None and instruction is not None:
        return Row(where, summary, None, (), instruction)  # no page: a question and its answer
    if text is None and columns.images:
        names = " and ".join(repr(name) for name in (columns.text, columns.images) if name)
        raise RowError(where, f"no page: nothing in {names}", "no page")
    return Row(where, summary, text_of(values, columns.text, where), (), instruction)


def _chat_row(
    values: dict[str, Any], where: str, place: Place, columns: Columns, answered: bool
) -> Row:
    try:
        question, answer, parts = chat.one_turn(values.get(columns.chat), columns.chat, answered)
    except ValueError as error:
        raise RowError(where, str(error)) from None
    beside = _images_given(values, where, columns)
    beside = beside if isinstance(beside, list) else [beside]
    if parts and beside and any(part is not None for part in parts):
        raise RowError(where, f"images both in {columns.chat!r} and in {columns.images!r}")
    images = beside or [part for part in parts if part is not None]
    if len(parts) > len(images) or (parts and len(parts) < len(images)):
        places = number_of(len(parts), "place")
        raise RowError(where, f"{places} for images, {number_of(len(images), 'image')}")
    found = _images(images, where, place) if images else ()
    question_row = {columns.chat: question}
    instruction = text_of(question_row, columns.chat, where) if question.strip() else None
    if instruction is None and not found:
        raise RowError(where, "an empty question without an image", "empty question")
    summary = "" if answer is None else text_of({"answer": answer}, "answer", where)
    return Row(where, summary, None, found, instruction)


# -- prompts --------------------------------------------------------------------------------------

_LEADING = re.compile(rf"(?:{PLACEHOLDER}\s*)*{PLACEHOLDER}")


def prompt_after_pages(instruction: str, pages: int, where: str) -> str:
    """What follows the visual tokens: the instruction, stripped, as the official code serves it.

    A leading "<image>" stands for the pages and is left out; without it a line break is put between
    page and instruction, as the official prompts have one ("<image>\\nFree OCR."). pages: 0 where
    the number is not known. Raises RowError for a placeholder anywhere else.
    """
    prompt = instruction.strip()
    leading = _LEADING.match(prompt)
    if not leading:
        if PLACEHOLDER in prompt:
            raise RowError(where, f"{PLACEHOLDER} in the middle of the instruction; it leads")
        return "\n" + prompt
    given, rest = leading[0].count(PLACEHOLDER), prompt[leading.end() :]
    if PLACEHOLDER in rest:
        raise RowError(where, f"{PLACEHOLDER} in the middle of the instruction; it leads")
    if given > 1 and pages and given != pages:
        raise RowError(where, f"{given} times {PLACEHOLDER} for {number_of(pages, 'image')}")
    return rest


# -- images ---------------------------------------------------------------------------------------


def _images_given(values: dict[str, Any], where: str, columns: Columns) -> Any:
    """What stands in the field of images, [] if nothing does."""
    names = [n for n in (columns.images, columns.other_images) if values.get(n) not in (None, [])]
    if len(names) > 1:
        raise RowError(where, f"both {names[0]!r} and {names[1]!r}; a row has one", "two pages")
    return values[names[0]] if names else []


def _images(given: Any, where: str, place: Place) -> tuple[Path | bytes, ...]:
    images = given if isinstance(given, list) else [given]
    if not images or not all(is_image(image) for image in images):
        raise RowError(where, "image is a path, images a list of paths", "not an image")
    return tuple(_image(image, where, place) for image in images)


def _image(image: str | bytes | dict[str, Any], where: str, place: Place) -> Path | bytes:
    """The hub's {bytes, path} has its path for a name if it has bytes."""
    if isinstance(image, dict):
        image = image["path"] if image.get("bytes") is None else image["bytes"]
    if isinstance(image, bytes):
        if not image:
            raise RowError(where, "an image of no bytes", "not an image")
        return image
    if image.startswith("data:"):
        return _data_uri(image, where)
    if image.startswith(("http://", "https://")):
        reason = f"image {image!r:.200} is an address; download it first and give its path"
        raise RowError(where, reason, "an image on the web")
    path = place.folder / image.removeprefix("file://")
    try:
        inside = path.resolve().is_relative_to(place.root.resolve())
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a circle of links
        reason = f"image {image!r:.200}: not a possible file name"
        raise RowError(where, reason, "no such image") from None
    if not place.anywhere and not inside:
        reason = f"image {image!r} is outside of the data folder; --images-anywhere allows it"
        raise RowError(where, reason, "an image outside of the data folder")
    try:
        return find_file(path, missing="no such image")
    except UserError as error:
        raise RowError(where, str(error), "no such image") from None


def _data_uri(text: str, where: str) -> bytes:
    head, comma, data = text.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("only ;base64 is read")
        content = base64.b64decode(data, validate=True)
        if not content:
            raise ValueError("no bytes in it")
        return content
    except (ValueError, binascii.Error) as error:
        raise RowError(where, f"image {head!r:.80}: {error}", "not an image") from None


def text_of(values: dict[str, Any], name: str, where: str) -> str:
    """A field that must be a text with something in it."""
    if name not in values:
        found = ", ".join(map(repr, list(values)[:10])) + (", ..." if len(values) > 10 else "")
        raise RowError(where, f"no field {name!r}; found: {found}", f"no field {name!r}")
    text = values[name]
    if not isinstance(text, str):
        kind = f"field {name!r} is not a text"
        raise RowError(where, f"field {name!r} is {json_kind(text)}, not a text", kind)
    if not text.strip():
        raise RowError(where, f"field {name!r} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        kind = f"field {name!r} is not valid Unicode"
        raise RowError(where, f"{kind} ({_undecoded(text) or error.reason})", kind) from None
    return text


def _undecoded(text: str) -> str:
    """Of a field of a table, whose bytes may not have been UTF-8: what is said of them."""
    try:
        data = text.encode("utf-8", "surrogateescape")
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(data, error)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can spell
        pass
    return ""
