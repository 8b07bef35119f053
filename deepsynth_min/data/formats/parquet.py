"""Parquet files -> the values of rows: read by row group, a few groups in memory, in any order.

In: a .parquet file and the columns that rows are made of; images are bytes, a path, or the hub's
{bytes, path}, one or a list. Out: the reader that readers.py describes; a row's two numbers are its
own and its size in bytes.

The one idea: the smallest thing that Parquet gives is a row group, so decoded groups are kept, the
latest used ones, up to CACHE_BYTES, for all threads together. The trade-off: rows are drawn in a
permuted order, and data that is larger than the cache costs about one decoded group a row. With
groups of 100 to 1,000 rows, as data sets on the hub have them, that is less work than drawing the
row's page (bench/data_scale.py --format parquet); a file of one huge group is refused with a word
on how to write it in smaller ones. One lock guards it all: threads that want the same group wait
for it rather than decode it twice, and no more than one group is ever on its way into memory.

What a file says about its sizes is not believed: groups come in small batches and are counted.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError, find_file
from .columns import Columns
from .readers import BadValue, Found

CACHE_BYTES = 256 * 2**20  # of decoded row groups, per process
LARGEST_GROUP = 2**30  # bytes, decoded
_BATCH_BYTES = 8 * 2**20  # decoded at a time
_BUFFER = 2**18  # bytes of each column read at a time
_OPEN_FILES = 16


def _arrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("Parquet needs pyarrow: pip install 'deepsynth-min[parquet]'") from None
    return pyarrow


def _is_text(kind: Any, pa: Any) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def _is_bytes(kind: Any, pa: Any) -> bool:
    checks = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(check(kind) for check in checks)


def _holds_text(kind: Any, pa: Any) -> bool:
    """A text, or a list of texts, which may be paths of images, or something else."""
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _is_text(kind.value_type if is_list else kind, pa)


def _is_image(kind: Any, pa: Any) -> bool:
    """A path, bytes, {bytes, path} with at least one of the two, or a list of such."""
    if any(f(kind) for f in (pa.types.is_list, pa.types.is_large_list)):
        return _is_image(kind.value_type, pa) and not pa.types.is_list(kind.value_type)
    if pa.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}
        right = {"bytes": _is_bytes, "path": _is_text}
        known = [name for name in right if name in fields]
        return bool(known) and all(
            pa.types.is_null(fields[name]) or right[name](fields[name], pa) for name in known
        )
    return _is_text(kind, pa) or _is_bytes(kind, pa)


class ParquetFile:
    """One file: its columns checked, its row groups decoded on demand. Not safe for threads."""

    def __init__(self, path: Path):
        self.path, self.pa = path, _arrow()
        self.columns, self.sized = [], ()
        with self._readable():
            # Pages are read as they are needed, whatever the footer says of a column's length.
            self.file = self.pa.parquet.ParquetFile(
                path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER
            )
            self.schema, self.metadata = self.file.schema_arrow, self.file.metadata
        groups = (self.metadata.row_group(g) for g in range(self.metadata.num_row_groups))
        counts = [group.num_rows for group in groups]
        if any(not 0 <= count < 2**40 for count in counts):
            raise UserError(f"{path}: not a readable Parquet file (a group of {max(counts)} rows)")
        self.starts = np.cumsum([0, *counts])

    def _readable(self):
        return _Readable(self.path, self.pa)

    def present(self) -> dict[str, bool]:
        """The columns, and whether one can hold nothing but images (columns.py)."""
        pa, found = self.pa, {}
        for field in self.schema:
            if not pa.types.is_null(field.type):
                found[field.name] = _is_image(field.type, pa) and not _holds_text(field.type, pa)
        return found

    def choose(self, columns: Columns, answered: bool) -> None:
        """The columns to read. Raises UserError for one that is missing or of a wrong type."""
        pa, names = self.pa, self.schema.names
        self.columns = [name for name in dict.fromkeys(columns.names) if name in names]
        self.sized = (columns.text, columns.answer)
        for name in self.columns:
            if names.count(name) > 1:
                raise UserError(f"{self.path}: several columns are called {name!r}")
            kind = self.schema.field(name).type
            if pa.types.is_null(kind):
                continue
            right, what = _is_text(kind, pa), "a text"
            if name in (columns.images, columns.other_images):
                right, what = _is_image(kind, pa), "bytes, a path, {bytes, path} or a list"
            elif name == columns.chat:
                right, what = pa.types.is_list(kind) or pa.types.is_large_list(kind), "a list"
            if not right:
                raise UserError(f"{self.path}: column {name!r} is {str(kind):.200}, not {what}")
        needed = [columns.chat] if columns.chat else [columns.answer] if answered else []
        if not {columns.text, columns.images, columns.instruction, columns.chat} & set(names):
            needed.append(columns.text)
        for name in needed:
            if name not in names:
                found = ", ".join(map(repr, names[:10])) + (", ..." if names[10:] else "")
                raise UserError(f"{self.path}: no column {name!r}; found: {found}")

    def _too_large(self, group: int) -> UserError:
        return UserError(
            f"{self.path}: row group {group} of {self.metadata.row_group(group).num_rows:,} rows "
            f"takes more than {LARGEST_GROUP:,} bytes; write the file with smaller ones "
            "(pyarrow.parquet.write_table(table, file, row_group_size=1000))"
        )

    def batches(self, group: int) -> Iterator:
        """A row group's columns in pieces of about _BATCH_BYTES, `LARGEST_GROUP` in all."""
        facts, total, rows = self.metadata.row_group(group), 0, 0
        size = max(1, abs(facts.total_byte_size) // max(1, facts.num_rows))
        with self._readable():
            for batch in self.file.iter_batches(
                max(1, min(1024, _BATCH_BYTES // size)), [group], self.columns, use_threads=False
            ):
                total, rows = total + batch.nbytes, rows + len(batch)
                if total > LARGEST_GROUP:
                    raise self._too_large(group)
                yield batch
            if rows != facts.num_rows:
                raise ValueError(f"row group {group} holds {rows} rows, not {facts.num_rows}")

    def values(self, batch: Any, at: int) -> dict[str, Any]:
        """Row `at` of a batch. Raises BadValue."""
        try:
            return {name: batch.column(name)[at].as_py() for name in self.columns}
        except UnicodeDecodeError as error:
            reason = "a text is not UTF-8"
            raise BadValue(f"{reason} ({error.reason})", reason) from None

    def scan(self) -> Iterator[Found]:
        """Goes through all rows; see formats.Reader."""
        total, number, bytes_ = int(self.starts[-1]), 0, self.path.stat().st_size
        for group in range(self.metadata.num_row_groups):
            for batch in self.batches(group):
                for size, values in self._rows(batch):
                    yield Found(number, size, bytes_ * (number + 1) // total, values)
                    number += 1

    def _rows(self, batch: Any) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
        """(bytes of text and answer, values) of each row of a batch."""
        try:
            columns = [batch.column(name).to_pylist() for name in self.columns]
        except UnicodeDecodeError:  # by cells, to find the one
            for at in range(len(batch)):
                yield 0, lambda at=at: self.values(batch, at)
            return
        for cells in zip(*columns) if columns else [()] * len(batch):
            values = dict(zip(self.columns, cells))
            texts = [values.get(name) for name in self.sized]
            size = sum(len(text.encode()) for text in texts if isinstance(text, str))
            yield size, lambda values=values: values


class _Readable:
    """Turns what pyarrow raises for a file that is none, or damaged, into a UserError."""

    def __init__(self, path: Path, pa: Any):
        self.path, self.kinds = (
            path,
            (
                pa.ArrowException,
                OSError,
                ValueError,
                MemoryError,
                OverflowError,
                TypeError,
                KeyError,
            ),
        )

    def __enter__(self):
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: object):
        if isinstance(error, self.kinds) and not isinstance(error, UserError):
            reason = (str(error).strip().splitlines() or [kind.__name__])[0]
            raise UserError(f"{self.path}: not a readable Parquet file ({reason})") from None


class GroupCache:
    """Decoded row groups of some files, the latest used ones, within CACHE_BYTES."""

    def __init__(self, paths: list[Path], columns: Columns | None, answered: bool):
        self.paths, self.columns, self.answered = paths, columns, answered
        self.lock = threading.Lock()
        self.files: OrderedDict[int, ParquetFile] = OrderedDict()
        self.groups: OrderedDict[tuple[int, int], tuple] = OrderedDict()  # (table, bytes)
        self.held = 0  # bytes of them
        self.decoded = 0  # groups until now

    def file(self, number: int, chosen: bool = True) -> ParquetFile:
        """File `number`, opened if it is not among the latest used ones; chosen: with its columns
        chosen."""
        if number not in self.files:
            self.files[number] = ParquetFile(find_file(self.paths[number]))
            if len(self.files) > _OPEN_FILES:
                self.files.popitem(last=False)
        self.files.move_to_end(number)
        file = self.files[number]
        if chosen and not file.columns:
            file.choose(self.columns, self.answered)
        return file

    def values(self, number: int, place: int) -> dict[str, Any]:
        """Of row `place` of file `number`. Safe for threads."""
        with self.lock:
            file = self.file(number)
            group = int(np.searchsorted(file.starts, place, side="right")) - 1
            table = self._group(file, number, group)
        return file.values(table, place - int(file.starts[group]))

    def _group(self, file: ParquetFile, number: int, group: int):
        if (number, group) not in self.groups:
            table = file.pa.Table.from_batches(list(file.batches(group)))
            table = table.combine_chunks()  # a cell is found without a search
            self.groups[number, group] = (table, table.nbytes)
            self.held += table.nbytes
            self.decoded += 1
            while len(self.groups) > 1 and self.held > CACHE_BYTES:
                _, (_, size) = self.groups.popitem(last=False)
                self.held -= size
        self.groups.move_to_end((number, group))
        return self.groups[number, group][0]


class ParquetReader:
    """One file of a GroupCache as readers.py wants it."""

    def __init__(self, groups: GroupCache, number: int):
        self.groups, self.number, self.path = groups, number, groups.paths[number]

    def scan(self) -> Iterator[Found]:
        return self.groups.file(self.number).scan()

    def values(self, first: int, second: int, length: int) -> dict[str, Any]:
        return self.groups.values(self.number, first)

    def where(self, first: int, second: int) -> str:
        return f"{self.path}:row {first + 1}"

    def size(self, first: int, second: int, length: int) -> int:
        return second

    def sizes(self, index: np.ndarray, end: int) -> np.ndarray:
        return index[:, 1]
