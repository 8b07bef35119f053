"""Data files -> rows: JSON lines are checked and indexed once, then read one at a time.

In: `--data`: "embedded", a .jsonl file or a folder of them. Out: a sequence of `Row`s.

The one idea: the file stays on disk. One pass checks every row and notes where it starts (index.py);
after that a row is one `pread` and one `json.loads`, from any thread. A row that cannot be used stops the
run before it starts and is named by file and line: nothing is ever dropped in silence.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import corpus
from .config import UserError, find_file
from .index import row_index
from .order import Permutation
from .settings import DataSettings


@dataclass(frozen=True)
class Row:
    """One sample as the user wrote it: a text or images, and the answer."""

    where: str  # file:line, for messages
    summary: str
    text: str | None = None
    images: tuple[Path, ...] = ()
    instruction: str | None = None


class EmbeddedRows:
    """The embedded corpus, train or val."""

    def __init__(self, split: str):
        self.split, self.documents = split, corpus.documents(split)

    def __len__(self) -> int:
        return len(self.documents)

    def signature(self) -> str:
        return f"embedded {self.split}"

    def size(self, i: int) -> int:
        """Characters of text and summary."""
        return len(self.documents[i].text) + len(self.documents[i].summary)

    def __getitem__(self, i: int) -> Row:
        document = self.documents[i]
        return Row(f"embedded {self.split} {i}", document.summary, document.text)


class JsonlRows:
    """The rows of one or several .jsonl files. Raises UserError naming file and line.

    answered: whether every row must have its answer; without, it is "" where there is none.
    """

    def __init__(
        self, path: str, settings: DataSettings, progress: bool = False, answered: bool = True
    ):
        self.settings, self.answered = settings, answered
        self.files = _files(path)
        how = {"fields": [settings.text_field, settings.summary_field,
                          settings.instruction_field],
               "anywhere": settings.images_anywhere, "answered": answered}  # fmt: skip
        try:
            self.indices = [
                row_index(file, lambda line, n, f=file: self._parse(line, f, n), how, progress)
                for file in self.files
            ]
        except OSError as error:
            raise UserError(f"{error.filename or path}: {error.strerror}") from None
        self.ends = np.cumsum([len(index) for index in self.indices])
        if not len(self):
            raise UserError(f"{path}: no rows")
        self.sizes = [file.stat().st_size for file in self.files]
        self.handles: dict[int, int] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, i: int) -> tuple[int, int, int, int]:
        """(file, offset, bytes up to the next row, line number) of row i."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self.ends, i, side="right"))
        index = self.indices[number]
        place = i - (int(self.ends[number]) - len(index))
        offset, line = index[place].tolist()
        end = int(index[place + 1, 0]) if place + 1 < len(index) else self.sizes[number]
        return number, offset, end - offset, line

    def signature(self) -> str:
        """Tells this data from other data: the size, beginning and end of each file."""
        digest = hashlib.sha256()
        for file, size in zip(self.files, self.sizes):
            with open(file, "rb") as content:
                digest.update(b"%d" % size + content.read(1 << 16))
                content.seek(max(0, size - (1 << 16)))
                digest.update(content.read())
        return digest.hexdigest()[:16]

    def size(self, i: int) -> int:
        """Bytes of row i: how long its text and answer are, roughly."""
        return self._place(i)[2]

    def __getitem__(self, i: int) -> Row:
        number, offset, length, line_number = self._place(i)
        if number not in self.handles:
            self.handles[number] = os.open(self.files[number], os.O_RDONLY)
        line = os.pread(self.handles[number], length, offset)
        return self._parse(line, self.files[number], line_number)

    def _parse(self, line: bytes, file: Path, line_number: int) -> Row:
        where, names = f"{file}:{line_number}", self.settings
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object but a {type(values).__name__}")
        given = self.answered or names.summary_field in values
        summary = _text(values, names.summary_field, where) if given else ""
        instruction = None
        if values.get(names.instruction_field) is not None:
            instruction = _text(values, names.instruction_field, where)
        sources = dict.fromkeys((names.text_field, "image", "images"))
        sources = [name for name in sources if values.get(name) is not None]
        if len(sources) > 1:
            raise UserError(f"{where}: both {sources[0]!r} and {sources[1]!r}; a row has one")
        images = values.get("images", values.get("image"))
        if names.text_field in values or images is None:
            return Row(where, summary, _text(values, names.text_field, where), (), instruction)
        images = [images] if isinstance(images, str) else images
        if not isinstance(images, list) or not images or not all(isinstance(x, str) for x in images):
            raise UserError(f"{where}: image is a path, images a list of paths")
        paths = tuple(self._image_path(file.parent, image, where) for image in images)
        return Row(where, summary, None, paths, instruction)

    def _image_path(self, folder: Path, image: str, where: str) -> Path:
        path = folder / image
        try:
            inside = path.resolve().is_relative_to(folder.resolve())
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, a circle of links
            raise UserError(f"{where}: image {image!r:.200}: not a possible file name") from None
        if not self.settings.images_anywhere and not inside:
            raise UserError(f"{where}: image {image!r} is outside of the data folder; "
                            "--images-anywhere allows it")  # fmt: skip
        return find_file(path, f"{where}: ", "no such image")


def _files(path: str) -> list[Path]:
    """The data files that a path stands for. Raises UserError."""
    if not os.path.isdir(path):
        return [find_file(path)]
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".jsonl"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not names:
        raise UserError(f"{path}: no .jsonl file in this folder")
    return [find_file(Path(path) / name) for name in names]


def _text(values: dict, name: str, where: str) -> str:
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


class View:
    """Rows `start` .. `stop` of others, in the order of a permutation, or in their own."""

    def __init__(self, rows, start: int, stop: int, order: Permutation | None = None):
        self.rows, self.start, self.stop, self.order = rows, start, stop, order

    def __len__(self) -> int:
        return self.stop - self.start

    def signature(self) -> str:
        return f"{self.rows.signature()} {self.start}..{self.stop}"

    def _row(self, i: int) -> int:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.start + i if self.order is None else self.order[self.start + i]

    def size(self, i: int) -> int:
        return self.rows.size(self._row(i))

    def __getitem__(self, i: int) -> Row:
        return self.rows[self._row(i)]


def open_rows(settings: DataSettings, seed: int, progress: bool = False):
    """(training rows, held-out rows). Raises UserError."""
    if settings.data == "embedded":
        train = EmbeddedRows("train")
        held_out = EmbeddedRows("val")
    else:
        train = held_out = JsonlRows(settings.data, settings, progress)
    if settings.val_data:
        held_out = JsonlRows(settings.val_data, settings, progress)
        files = [] if settings.data == "embedded" else train.files
        for file in held_out.files:
            if any(os.path.samefile(file, other) for other in files):
                raise UserError(f"--val-data {file}: is in --data too, so nothing is held out")
    elif held_out is train:
        train, held_out = _split(train, settings, seed)
    if settings.val_samples and len(held_out) > settings.val_samples:
        held_out = View(held_out, 0, settings.val_samples)
    return train, held_out


def _split(rows, settings: DataSettings, seed: int):
    """A share of the rows is held out: the same for the same seed and number of rows."""
    if len(rows) < 2:
        raise UserError(f"{settings.data}: one row cannot be split; give --val-data")
    order = Permutation(len(rows), seed, 1)
    size = min(len(rows) - 1, max(1, round(len(rows) * settings.val_fraction)))
    return View(rows, size, len(rows), order), View(rows, 0, size, order)
