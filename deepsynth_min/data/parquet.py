"""Parquet files -> rows: read by row group, a few groups in memory, any row in any order.

In: a .parquet file with the columns text, summary, instruction (by their set names), and image or
images: bytes, a path, or the hub's {bytes, path}, one or a list. Out: `Row`s; at the start, int64
[rows, 2], the row group and the size in bytes of each row.

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, find_file
from ..settings import DataSettings
from .row import Place, Row, parse_row

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


def _image(value: Any):
    """The bytes or the path of a cell; the hub's struct has its path for a name if it has bytes."""
    if isinstance(value, list):
        return [_image(item) for item in value]
    if isinstance(value, dict):
        return value.get("path") if value.get("bytes") is None else value["bytes"]
    return value


class ParquetFile:
    """One file: its columns checked, its row groups decoded on demand. Not safe for threads."""

    def __init__(self, path: Path, names: DataSettings, answered: bool = True):
        self.path, self.names, self.answered, self.pa = path, names, answered, _arrow()
        self.place = Place(path.parent, path.parent)
        with self._readable():
            # Pages are read as they are needed, whatever the footer says of a column's length.
            self.file = self.pa.parquet.ParquetFile(
                path, page_checksum_verification=True, pre_buffer=False, buffer_size=_BUFFER
            )
            schema, self.metadata = self.file.schema_arrow, self.file.metadata
        self.columns = self._columns(schema)
        groups = (self.metadata.row_group(g) for g in range(self.metadata.num_row_groups))
        counts = [group.num_rows for group in groups]
        if any(not 0 <= count < 2**40 for count in counts):
            raise UserError(f"{path}: not a readable Parquet file (a group of {max(counts)} rows)")
        self.starts = np.cumsum([0, *counts])

    def _readable(self):
        return _Readable(self.path, self.pa)

    def _columns(self, schema: Any) -> list[str]:
        """The columns that rows are made of, by name. Raises UserError for a wrong type."""
        names, pa = self.names, self.pa
        texts = (names.text_field, names.summary_field, names.instruction_field)
        possible = dict.fromkeys((*texts, "image", "images"))
        wanted = [name for name in possible if name in schema.names]
        for name in wanted:
            if schema.names.count(name) > 1:
                raise UserError(f"{self.path}: several columns are called {name!r}")
            kind = schema.field(name).type
            right = _is_text(kind, pa) if name in texts else _is_image(kind, pa)
            if not right and not pa.types.is_null(kind):
                what = "a text" if name in texts else "bytes, a path, {bytes, path} or a list"
                raise UserError(f"{self.path}: column {name!r} is {str(kind):.200}, not {what}")
        sources = {names.text_field, "image", "images"} & set(wanted)
        missing = (
            [] if names.summary_field in wanted or not self.answered else [names.summary_field]
        )
        for name in missing + ([] if sources else [names.text_field]):
            found = ", ".join(map(repr, schema.names[:10])) + (", ..." if schema.names[10:] else "")
            raise UserError(f"{self.path}: no column {name!r}; found: {found}")
        return wanted

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

    def row(self, batch: Any, at: int, number: int) -> Row:
        """Row `at` of a batch, which is row `number` of the file, counted from 0."""
        where = f"{self.path}:row {number + 1}"
        try:
            values = {name: batch.column(name)[at].as_py() for name in self.columns}
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: a text is not UTF-8 ({error.reason})") from None
        for name in ("image", "images"):
            if name in values and name not in (
                self.names.text_field,
                self.names.summary_field,
                self.names.instruction_field,
            ):
                values[name] = _image(values[name])
        return parse_row(values, where, self.place, self.names, self.answered)

    def check(self) -> Iterator[tuple[int, int, int]]:
        """Checks every row; yields (row group, size, how far in the file in bytes) of each."""
        total, number, bytes_ = int(self.starts[-1]), 0, self.path.stat().st_size
        for group in range(self.metadata.num_row_groups):
            for batch in self.batches(group):
                for at in range(len(batch)):
                    row = self.row(batch, at, number)
                    number += 1
                    text = len((row.text or "").encode()) + len(row.summary.encode())
                    yield group, text, bytes_ * number // total


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

    def __init__(self, paths: list[Path], names: DataSettings, answered: bool, root: Path | None):
        self.paths, self.rest, self.root = paths, (names, answered), root
        self.lock = threading.Lock()
        self.files: OrderedDict[int, ParquetFile] = OrderedDict()
        self.groups: OrderedDict[tuple[int, int], tuple] = OrderedDict()  # (table, bytes)
        self.held = 0  # bytes of them
        self.decoded = 0  # groups until now

    def file(self, number: int) -> ParquetFile:
        """File `number`, opened if it is not among the latest used ones."""
        if number not in self.files:
            opened = ParquetFile(find_file(self.paths[number]), *self.rest)
            if self.root:
                opened.place = Place(opened.path.parent, self.root)
            self.files[number] = opened
            if len(self.files) > _OPEN_FILES:
                self.files.popitem(last=False)
        self.files.move_to_end(number)
        return self.files[number]

    def row(self, number: int, place: int) -> Row:
        """Row `place` of file `number`. Safe for threads."""
        with self.lock:
            file = self.file(number)
            group = int(np.searchsorted(file.starts, place, side="right")) - 1
            table = self._group(file, number, group)
        return file.row(table, place - int(file.starts[group]), place)

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
