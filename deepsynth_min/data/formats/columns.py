"""Which field of a row is what: the page, the instruction, the answer.

In: names of fields and a few rows' values, and what the user has set. Out: `Columns`, one choice
for all rows of a data set, and a line that says it.

The one idea: the names under which people publish such data are few. They are looked for in the
order below, in the first rows together, so that one row that lacks a field does not change what the
others mean; every choice can be set (--text-field, --image-field, --summary-field,
--instruction-field). Where a set has an image and a text and nothing else to be an answer, the
image is the page and the text its answer: that is what sets for OCR look like.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from ...settings import DataSettings

TEXTS = ("text", "document", "article", "context", "content", "input", "source")
ANSWERS = (
    *("summary", "answer", "response", "output", "completion", "target", "highlights", "abstract"),
    *("transcription", "ground_truth", "markdown", "caption", "label"),
)
INSTRUCTIONS = ("instruction", "prompt", "question", "query")
IMAGES = ("image", "images", "file_name", "image_path", "image_paths", "img", "page", "pages")
CHATS = ("messages", "conversations", "conversation")
SAMPLE = 200  # rows of a file that are looked at
SAMPLE_FILES = 16  # of the files


def is_image(value: Any) -> bool:
    """A path, bytes, or the hub's {bytes, path} with one of the two."""
    if isinstance(value, dict):
        found = value.get("path") if value.get("bytes") is None else value["bytes"]
        return isinstance(found, str | bytes)
    return isinstance(value, str | bytes)


def _holds_images(value: Any) -> bool:
    """A value that can be nothing but images, whatever its field is called."""
    values = value if isinstance(value, list) and value else [value]
    return all(isinstance(v, bytes | dict) and is_image(v) for v in values)


@dataclass(frozen=True)
class Columns:
    """The field of each part; None: no such part in this data set."""

    text: str | None = None
    images: str | None = None
    other_images: str | None = None  # "images" beside "image": a row has one of the two
    answer: str | None = None
    instruction: str | None = None
    chat: str | None = None
    page_from: Literal["text", "image"] = "text"  # for rows that have both

    def describe(self) -> str:
        """As a line for people."""
        if self.chat:
            images = f"images in it or in {self.images!r}" if self.images else "images in it"
            return f"instruction and answer: the turns of {self.chat!r}; page: {images}"
        text, images = f"drawn from {self.text!r}", f"the images in {self.images!r}"
        if self.text and self.images:
            first, second = (text, images) if self.page_from == "text" else (images, text)
            page = f"{first}, or {second}"
        else:
            page = text if self.text else images if self.images else "none"
        instruction = f"; instruction: {self.instruction!r}" if self.instruction else ""
        return f"page: {page}{instruction}; answer: {self.answer!r}"

    @property
    def names(self) -> list[str]:
        """The fields that rows are made of."""
        every = (self.text, self.images, self.other_images, self.answer)
        return [name for name in (*every, self.instruction, self.chat) if name]


def _first(known: Iterable[str], present: dict[str, bool], without: Iterable[str | None] = ()):
    return next((name for name in known if name in present and name not in without), None)


def find_columns(rows: Iterable[dict[str, Any]], settings: DataSettings) -> Columns:
    """The choice for a data set of which these are the first rows; what the user set comes first.

    A part that is not found has its usual name, so that messages can name it.
    """
    present: dict[str, bool] = {}  # field -> whether nothing but images stands in it
    for values in rows:
        for name, value in values.items():
            if value is not None:
                present[name] = present.get(name, True) and _holds_images(value)
            elif name not in present and name in ANSWERS:
                present[name] = False  # an answer that is missing in one row is still the answer
    return choose(present, settings)


def choose(present: dict[str, bool], settings: DataSettings) -> Columns:
    """present: the fields that there are, and whether one can hold nothing but images."""
    set_ = settings
    taken = (set_.text_field, set_.image_field, set_.summary_field, set_.instruction_field)
    images = set_.image_field or _first(IMAGES, present, taken)
    if not images:
        texts = (*taken, *TEXTS, *ANSWERS, *INSTRUCTIONS, *CHATS)
        images = next((name for name, only in present.items() if only and name not in texts), None)
    other = {"image": "images", "images": "image"}.get(images)
    other = other if other in present and not set_.image_field else None
    if not (set_.text_field or set_.summary_field):
        talk = _first(CHATS, present)
        if talk:
            return Columns(None, images, other, chat=talk, page_from=set_.page_from)
    usual = [name for name in (*TEXTS, *ANSWERS) if name not in (images, *taken)]
    answer = set_.summary_field or _first([n for n in usual if n in ANSWERS], present)
    text = set_.text_field or _first([n for n in usual if n in TEXTS], present, (answer,))
    if images in present and text and not answer and not set_.text_field:
        text, answer = None, text  # an image and what stands on it
    return Columns(
        text=text or (None if images in present else "text"),
        images=images if images in present or set_.image_field else None,
        other_images=other,
        answer=answer or "summary",
        instruction=set_.instruction_field or _first(INSTRUCTIONS, present, (text, answer)),
        page_from=set_.page_from,
    )
