"""Data files -> rows: checked and indexed once, then read one at a time.

In: `--data`: "embedded", a .jsonl or .parquet file, a folder of either, or a data set on the hub.
Out: a sequence of `Row`s.

The one idea: the file stays on disk. One pass checks every row and notes where it starts
(index.py); after that a row of JSON is one `pread` and one `json.loads`, a row of Parquet a place
in a decoded row group (parquet.py), from any thread. A row that cannot be used stops the run before
it starts and is named by file and line: nothing is ever dropped in silence.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..corpus import documents as corpus
from ..errors import UserError, find_file
from ..files.download import fetch_data, files_of_split, is_hub_id
from ..files.index import lines, row_index
from ..settings import DataSettings
from .order import Permutation
from .parquet import GroupCache
from .row import Place, Row, parse_row

KINDS = (".jsonl", ".parquet")


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


class FileRows:
    """The rows of one or several data files, all .parquet or all JSON lines. Raises UserError
    naming file and line.

    answered: whether every row must have its answer; without, it is "" where there is none.
    root: the folder that image paths may not leave; by default that of the file.
    """

    def __init__(
        self,
        files: list[Path],
        settings: DataSettings,
        progress: bool = False,
        answered: bool = True,
        root: Path | None = None,
    ):
        self.files, self.settings, self.answered, self.root = files, settings, answered, root
        self.parquet = None
        if files[0].suffix == ".parquet":
            self.parquet = GroupCache(files, settings, answered, root)
        how = {
            "fields": [settings.text_field, settings.summary_field, settings.instruction_field],
            "anywhere": settings.images_anywhere,
            "answered": answered,
        }
        try:
            self.indices = [
                row_index(file, lambda n=n: self._checked(n), how, progress)
                for n, file in enumerate(files)
            ]
            self.sizes = [file.stat().st_size for file in files]
        except OSError as error:
            raise UserError(f"{error.filename or files[0]}: {error.strerror}") from None
        self.ends = np.cumsum([len(index) for index in self.indices])
        if not len(self):
            raise UserError(f"{files[0] if len(files) == 1 else files[0].parent}: no rows")
        self.handles: dict[int, int] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, i: int) -> tuple[int, int]:
        """(file, place in it) of row i."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self.ends, i, side="right"))
        return number, i - (int(self.ends[number]) - len(self.indices[number]))

    def _span(self, number: int, place: int) -> tuple[int, int]:
        """(offset, bytes up to the next row) of a row of JSON."""
        index = self.indices[number]
        offset = int(index[place, 0])
        end = int(index[place + 1, 0]) if place + 1 < len(index) else self.sizes[number]
        return offset, end - offset

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
        number, place = self._place(i)
        if self.parquet:
            return int(self.indices[number][place, 1])
        return self._span(number, place)[1]

    def __getitem__(self, i: int) -> Row:
        number, place = self._place(i)
        if self.parquet:
            return self.parquet.row(number, place)
        if number not in self.handles:
            self.handles[number] = os.open(self.files[number], os.O_RDONLY)
        offset, length = self._span(number, place)
        line = os.pread(self.handles[number], length, offset)
        return self._parse(line, self.files[number], int(self.indices[number][place, 1]))

    def _checked(self, number: int):
        """For row_index: goes through the rows of a file."""
        file = self.files[number]
        if self.parquet:
            return self.parquet.file(number).check()
        return lines(file, lambda line, at: self._parse(line, file, at))

    def _parse(self, line: bytes, file: Path, line_number: int) -> Row:
        where = f"{file}:{line_number}"
        try:
            values = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise UserError(f"{where}: not a JSON object but a {type(values).__name__}")
        place = Place(file.parent, self.root or file.parent)
        return parse_row(values, where, place, self.settings, self.answered)


def _files(path: str) -> list[Path]:
    """The data files that a path stands for. Raises UserError."""
    if not os.path.isdir(path):
        return [find_file(path)]
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(KINDS))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if not names:
        raise UserError(f"{path}: no .jsonl file in this folder, and no .parquet file")
    return of_one_kind([find_file(Path(path) / name) for name in names], path)


def of_one_kind(files: list[Path], where: str) -> list[Path]:
    """The files, if they are all .jsonl or all .parquet. Raises UserError."""
    kinds = {file.suffix: file.name for file in files}
    if len(kinds) > 1:
        raise UserError(f"{where}: holds {' and '.join(kinds.values())}; give one kind of files")
    return files


def open_files(
    path: str,
    settings: DataSettings,
    progress: bool = False,
    answered: bool = True,
    revision: str = "",
    split: str = "train",
) -> FileRows:
    """The rows of a file, of the files in a folder, or of a split of a data set on the hub.

    Raises UserError.
    """
    if not is_hub_id(path):
        return FileRows(_files(path), settings, progress, answered)
    folder = fetch_data(path, revision)
    files = of_one_kind(files_of_split(folder, split, path), path)
    # Files of the cache are links to where it keeps their bytes, two folders above.
    return FileRows(files, settings, progress, answered, root=folder.parents[1])


def pinned(settings: DataSettings, before: DataSettings | None = None) -> DataSettings:
    """Settings in which a data set on the hub has its commit for a revision.

    before: those of the run that is taken up; without a word to the contrary its commit stays.
    Raises UserError.
    """
    found = {}
    for name, revision in (("data", "data_revision"), ("val_data", "val_revision")):
        value, given = getattr(settings, name), getattr(settings, revision)
        if not is_hub_id(value):
            if given:
                option = "--" + revision.replace("_", "-")
                raise UserError(f"{option} {given}: {value!r} is not a data set on the hub")
            continue
        if not given and before and getattr(before, name) == value:
            given = getattr(before, revision)
        found[revision] = fetch_data(value, given).name
    return replace(settings, **found)


class View:
    """Rows `start` .. `stop` of others, in the order of a permutation, or in their own."""

    def __init__(
        self, rows: Sequence[Row], start: int, stop: int, order: Permutation | None = None
    ):
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


def open_rows(
    settings: DataSettings, seed: int, progress: bool = False
) -> tuple[Sequence[Row], Sequence[Row]]:
    """(training rows, held-out rows). Raises UserError."""
    if settings.data == "embedded":
        train = EmbeddedRows("train")
        held_out = EmbeddedRows("val")
    else:
        train = held_out = open_files(
            settings.data, settings, progress, revision=settings.data_revision
        )
    if settings.val_data:
        held_out = open_files(
            settings.val_data, settings, progress, revision=settings.val_revision, split="val"
        )
        files = [] if settings.data == "embedded" else train.files
        for file in held_out.files:
            if any(os.path.samefile(file, other) for other in files):
                raise UserError(f"--val-data {file}: is in --data too, so nothing is held out")
    elif held_out is train:
        train, held_out = _split(train, settings, seed)
    if settings.val_samples and len(held_out) > settings.val_samples:
        held_out = View(held_out, 0, settings.val_samples)
    return train, held_out


def _split(rows: Sequence[Row], settings: DataSettings, seed: int):
    """A share of the rows is held out: the same for the same seed and number of rows."""
    if len(rows) < 2:
        raise UserError(f"{settings.data}: one row cannot be split; give --val-data")
    order = Permutation(len(rows), seed, 1)
    size = min(len(rows) - 1, max(1, round(len(rows) * settings.val_fraction)))
    return View(rows, size, len(rows), order), View(rows, 0, size, order)
