"""Data files -> rows: checked and indexed once, then read one at a time.

In: data files of one kind (formats/). Out: a sequence of `Row`s, and the faults: rows
that cannot be used, each with its place and the reason.

The one idea: the file stays on disk. One pass finds which field is what, checks every row and notes
where it starts (files/index.py); after that a row of JSON is one `pread` and one `json.loads`, a
row of Parquet a place in a decoded row group, from any thread. What cannot be used is named by file
and line, and left out only if that was asked for: nothing is ever dropped in silence.
"""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ..corpus.families import documents
from ..errors import UserError
from ..files.index import Fault, row_index
from ..settings import DataSettings
from .formats.columns import SAMPLE, SAMPLE_FILES, Columns, choose, find_columns
from .formats.parquet import GroupCache, ParquetReader
from .formats.readers import BadValue, Reader, kind_of, open_reader
from .order import Mixture, Permutation
from .row import Place, Row, RowError, parse_row

LISTED = 20  # faults that are shown one by one


class BadRows(UserError):
    """Rows that cannot be used, and what says so: `details` are lines to be shown before."""

    def __init__(self, message: str, details: list[str]):
        super().__init__(message)
        self.details = details


class EmbeddedRows:
    """A family of embedded documents, train or val."""

    columns = Columns(text="text", answer="summary")
    faults: list[Fault] = []

    def __init__(self, split: str, family: str):
        self.documents = documents(family, split)
        # The reports were once all there was; runs of then know them by this name.
        self.name = f"embedded {split}" if family == "reports" else f"embedded:{family} {split}"

    def __len__(self) -> int:
        return len(self.documents)

    def signature(self) -> str:
        return self.name

    def size(self, i: int) -> int:
        """Characters of text and summary."""
        document = self.documents[i]
        return len(document.text) + len(document.summary)

    def __getitem__(self, i: int) -> Row:
        document = self.documents[i]
        asked = document.instruction
        return Row(f"{self.name} {i}", document.summary, document.text, (), asked, document.needle)


class FileRows:
    """The good rows of one or several data files of one kind. Raises UserError.

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
        self.files, self.answered = files, answered
        self.places = [
            Place(file.parent, root or file.parent, settings.images_anywhere) for file in files
        ]
        self.parquet: GroupCache | None = None
        self.readers, self.columns = self._open(settings)
        how = {
            "columns": asdict(self.columns),
            "anywhere": settings.images_anywhere,
            "answered": answered,
        }
        try:
            found = [
                row_index(reader.path, lambda n=n: self._checked(n), how, progress)
                for n, reader in enumerate(self.readers)
            ]
            self.sizes = [reader.path.stat().st_size for reader in self.readers]
        except OSError as error:
            raise UserError(f"{error.filename or files[0]}: {error.strerror}") from None
        self.indices = [index for index, _ in found]
        self.faults = [fault for _, faults in found for fault in faults]
        self.ends = np.cumsum([len(index) for index in self.indices])
        refuse_bad_rows(self.faults, len(self), settings)
        if not len(self) and (answered or not self.faults):
            if self.faults:
                raise BadRows(f"{files[0]}: no row can be used", list_faults(self.faults))
            raise UserError(f"{files[0] if len(files) == 1 else files[0].parent}: no rows")

    def _open(self, settings: DataSettings) -> tuple[list[Reader], Columns]:
        """Readers of the files, and which of their fields is what."""
        if kind_of(self.files[0]) == ".parquet":
            groups = self.parquet = GroupCache(self.files, None, self.answered)
            present: dict[str, bool] = {}
            for n in range(min(len(self.files), SAMPLE_FILES)):
                present |= groups.file(n, chosen=False).present()
            columns = groups.columns = choose(present, settings)
            return [ParquetReader(groups, n) for n in range(len(self.files))], columns
        readers = [open_reader(file) for file in self.files]
        first = (itertools.islice(_values(reader), SAMPLE) for reader in readers[:SAMPLE_FILES])
        return readers, find_columns(itertools.chain.from_iterable(first), settings)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def _place(self, i: int) -> tuple[int, int, int, int]:
        """(file, the row's two numbers in it, bytes up to the next row) of row i."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        number = int(np.searchsorted(self.ends, i, side="right"))
        index = self.indices[number]
        place = i - (int(self.ends[number]) - len(index))
        first, second = (int(value) for value in index[place])
        end = int(index[place + 1, 0]) if place + 1 < len(index) else self.sizes[number]
        return number, first, second, end - first

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
        number, *place = self._place(i)
        return self.readers[number].size(*place)

    def where(self, i: int) -> str:
        """Of row i, as messages name it."""
        number, first, second, _ = self._place(i)
        return self.readers[number].where(first, second)

    def __getitem__(self, i: int) -> Row:
        number, first, second, length = self._place(i)
        reader = self.readers[number]
        try:
            values = reader.values(first, second, length)
        except ValueError as error:  # was sound when it was indexed
            where = reader.where(first, second)
            raise UserError(f"{where}: has changed since it was checked ({error})") from None
        where = reader.where(first, second)
        return parse_row(values, where, self.places[number], self.columns, self.answered)

    def longest(self, count: int, least: int) -> Iterator[int]:
        """The numbers of the `count` longest rows of at least `least` bytes, in the order of the
        files: a row group of Parquet is decoded once."""
        parts = zip(self.readers, self.indices, self.sizes)
        sizes = np.concatenate([reader.sizes(index, end) for reader, index, end in parts])
        chosen = np.flatnonzero(sizes >= least)
        if len(chosen) > count:
            chosen = np.sort(chosen[np.argpartition(sizes[chosen], -count)[-count:]])
        yield from chosen.tolist()

    def _checked(self, number: int) -> Iterator[tuple[int, int, int] | tuple[Fault, int]]:
        """For row_index: goes through the rows of a file."""
        reader, place = self.readers[number], self.places[number]
        for first, second, end, values in reader.scan():
            where = reader.where(first, second)
            try:
                parse_row(values(), where, place, self.columns, self.answered)
            except BadValue as error:
                yield Fault(where, str(error), error.kind), end
            except RowError as error:
                yield Fault(where, error.reason, error.kind), end
            else:
                yield first, second, end


def _values(reader: Reader) -> Iterator[dict]:
    """Of those rows that have any."""
    for found in reader.scan():
        try:
            yield found.values()
        except BadValue:
            pass  # named when every row is checked


# -- bad rows -------------------------------------------------------------------------------------


def by_kind(faults: Sequence[Fault]) -> str:
    """How many there are of each kind, the most frequent first."""
    counts = Counter(fault.kind for fault in faults)
    return "; ".join(f"{count:,} {kind}" for kind, count in counts.most_common(8))


def list_faults(faults: Sequence[Fault]) -> list[str]:
    """The first of them as lines, and how many more there are."""
    lines = [f"{fault.where}: {fault.reason}" for fault in faults[:LISTED]]
    more = len(faults) - LISTED
    return lines + ([f"... and {more:,} more: {by_kind(faults[LISTED:])}"] if more > 0 else [])


def is_skipped(settings: DataSettings, too_long: bool) -> bool:
    """Whether a row that cannot be used, or is too long, is left out instead of ending the run."""
    given = settings.on_too_long if too_long else "auto"
    return (settings.on_bad_row if given == "auto" else given) == "skip"


def refuse_bad_rows(faults: Sequence[Fault], good: int, settings: DataSettings) -> None:
    """Raises BadRows if there are any and they may not be skipped, or if they are too many."""
    if not faults:
        return
    first, total = f"{faults[0].where}: {faults[0].reason}", good + len(faults)
    share = f"{len(faults):,} of {total:,} rows cannot be used ({by_kind(faults)})"
    if settings.on_bad_row == "error":
        if len(faults) == 1 and good:
            raise BadRows(f"{first} (--on-bad-row skip leaves it out)", [])
        hint = "; --on-bad-row skip leaves them out" if good else ""
        if good and len(faults) > settings.max_bad * total:
            hint += f", with a --max-bad above {settings.max_bad:g}"
        if not good and all(fault.kind.startswith("no field ") for fault in faults):
            hint = "; --text-field, --image-field, --summary-field say which fields are meant"
        listed = list_faults(faults) if total > 1 else []
        raise BadRows(f"{first}; in all {share}{hint}", listed)
    if len(faults) > settings.max_bad * total:
        raise BadRows(
            f"{first}; in all {share}, more than --max-bad {settings.max_bad:g}; with a higher one "
            "they are left out",
            list_faults(faults),
        )


# -- parts of rows --------------------------------------------------------------------------------


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

    def place(self, i: int) -> int:
        """The row of the others that is row i of these."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.start + i if self.order is None else self.order[self.start + i]

    def size(self, i: int) -> int:
        return self.rows.size(self.place(i))

    def __getitem__(self, i: int) -> Row:
        return self.rows[self.place(i)]


def place_in_files(rows: Sequence[Row], i: int) -> tuple[int, int]:
    """Sorts rows by where they stand: (number of the source, row of its files)."""
    if isinstance(rows, View):
        return place_in_files(rows.rows, rows.place(i))
    if isinstance(rows, Mixture):
        number, place = rows.source(i)
        return number, place_in_files(rows.sources[number], place)[1]
    return 0, i
