"""Files of rows: JSON lines, JSON arrays and tables, compressed or not -> the values of each row.

In: a file. Out: a reader: `scan` goes through the file once and tells where each row stands,
`values` gives one row again by that.

The one idea: a row is found again by two numbers, the byte it begins at and its line (or its number
in an array), and it ends by itself: a line at its end, an object at its closing brace, a record of
a table at a line end outside of quotes. So every format is read at random as JSON lines are, no
more than a row is ever held, and a fault is named by its place. A compressed file is unpacked once,
into the cache folder.

Hugging Face `datasets` was weighed for this and refused: its JSON and CSV readers infer one type
for a column and fail by file where a row differs, so that a bad row could neither be named nor left
out, and it writes all rows anew as Arrow before the first is read.
"""

import csv
import io
import json
import mmap
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

from ...errors import UserError, json_kind, looks_like_utf16, not_utf8, number_of
from ...files.unpack import PACKED, unpacked

TABLES = (".csv", ".tsv")
PLAIN = (".jsonl", ".json", ".ndjson", *TABLES)
KINDS = (*PLAIN, ".parquet")
LISTS = ("data", "rows", "train", "examples")  # {"data": [...]}: where the rows may lie
csv.field_size_limit(2**31 - 1)  # a document is longer than the 131,072 characters it allows


class Found(NamedTuple):
    """A row as `scan` finds it."""

    first: int  # two numbers by which `values` finds it again
    second: int
    end: int  # byte of the file up to which has been read, for progress
    values: Callable[[], dict[str, Any]]  # raises BadValue


class BadValue(ValueError):
    """What stands at a row's place is no row; `kind` is the fault without its details."""

    def __init__(self, reason: str, kind: str = ""):
        super().__init__(reason)
        self.kind = kind or reason


class Reader(Protocol):
    """What every format gives."""

    path: Path  # of the file that is read; of a compressed one its content

    def scan(self) -> Iterator[Found]: ...

    def values(self, first: int, second: int, length: int) -> dict[str, Any]:
        """length: bytes up to the next row, or the file's end."""

    def where(self, first: int, second: int) -> str: ...

    def size(self, first: int, second: int, length: int) -> int:
        """Bytes of a row, roughly."""

    def sizes(self, index: np.ndarray, end: int) -> np.ndarray:
        """The same of all rows of an index [rows, 2]; end: bytes of the file."""


def kind_of(name: str | os.PathLike) -> str:
    """The suffix by which a file is read, that of compression left out: a.jsonl.gz -> .jsonl; ""
    for a file that holds no rows."""
    path = Path(str(name).lower())
    inner = Path(path.stem) if path.suffix in PACKED else path
    return inner.suffix if inner.suffix in KINDS else ""


class _FileReader:
    """What readers of text files share. path: what is read; shown: as the user named it."""

    def __init__(self, path: Path, shown: Path):
        self.path, self.shown, self.handle = path, shown, None

    def _read(self, offset: int, length: int) -> bytes:
        if self.handle is None:
            self.handle = os.open(self.path, os.O_RDONLY)
        return os.pread(self.handle, length, offset)

    def where(self, first: int, second: int) -> str:
        return f"{self.shown}:{second}"

    def size(self, first: int, second: int, length: int) -> int:
        return length

    def sizes(self, index: np.ndarray, end: int) -> np.ndarray:
        return np.diff(index[:, 0], append=end)


def _object(text: bytes) -> dict[str, Any]:
    try:
        values = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadValue(not_utf8(text, error), "not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise BadValue(f"not JSON ({error})", "not JSON") from None
    if not isinstance(values, dict):
        raise BadValue(f"not a JSON object but {json_kind(values)}", "not a JSON object")
    return values


class JsonLines(_FileReader):
    """An object on each line; blank lines are no rows."""

    def scan(self) -> Iterator[Found]:
        offset = 0
        with open(self.path, "rb") as content:
            for number, line in enumerate(content, 1):
                end = offset + len(line)
                if line.strip():
                    yield Found(offset, number, end, lambda line=line: _object(line))
                offset = end

    def values(self, first: int, second: int, length: int) -> dict[str, Any]:
        return _object(self._read(first, length).partition(b"\n")[0])


_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[][{},]|"', re.DOTALL)
_DECODER = json.JSONDecoder()


class JsonArray(_FileReader):
    """The objects of an array, which is the file or the value of a key in LISTS; the file is mapped
    into memory, not read."""

    def where(self, first: int, second: int) -> str:
        return f"{self.shown}:row {second}"

    def scan(self) -> Iterator[Found]:
        with open(self.path, "rb") as content:
            with mmap.mmap(content.fileno(), 0, access=mmap.ACCESS_READ) as text:
                yield from self._elements(text)

    def _elements(self, text: mmap.mmap) -> Iterator[Found]:
        begin, depth, number = self._begin(text), 1, 0
        for token in _TOKEN.finditer(text, begin):
            mark, at = token[0], token.start()
            if mark in b"[{":
                depth += 1
            elif mark in b"]}":
                depth -= 1
            if (mark == b"," and depth == 1) or depth == 0:
                piece = text[begin:at]
                if piece.strip() or mark == b"," or number:  # not the inside of []
                    number += 1
                    yield Found(begin, number, at, lambda piece=piece: _object(piece))
                begin = token.end()
            if depth == 0:
                break
            if mark == b'"':  # one that is never closed
                break
        if depth:
            number, reason = number + 1, "the file ends within the array of rows"
            yield Found(begin, number, len(text), lambda: _fail(reason))

    def _begin(self, text: mmap.mmap) -> int:
        """The byte after the bracket that opens the array of rows."""
        start = re.compile(rb"(?:\xef\xbb\xbf)?\s*\[").match(text)
        if start:
            return start.end()
        depth, key = 0, b""
        for token in _TOKEN.finditer(text):
            mark = token[0]
            if mark == b"[" and depth == 1 and key.strip(b'"').decode("utf-8", "replace") in LISTS:
                return token.end()
            depth += (mark in b"[{") - (mark in b"]}")
            if depth == 1 and len(mark) > 1:
                key = mark
        raise UserError(
            f"{self.shown}: neither JSON lines nor an array of rows, nor {{{LISTS[0]!r}: [...]}}"
        )

    def values(self, first: int, second: int, length: int) -> dict[str, Any]:
        text = self._read(first, length).decode("utf-8", "surrogateescape")
        text = text.removeprefix("\ufeff")
        return _DECODER.raw_decode(text, len(text) - len(text.lstrip()))[0]


def _fail(reason: str, kind: str = "") -> Any:
    raise BadValue(reason, kind)


class Table(_FileReader):
    """Comma, semicolon or tab separated values; the first record names the fields.

    An empty field is none; quoted ones may hold line ends.
    """

    def __init__(self, path: Path, shown: Path):
        super().__init__(path, shown)
        self.delimiter, self.fields = ",", []

    def _head(self, content: IO[bytes]) -> None:
        head = content.read(1 << 16)
        content.seek(0)
        first = re.sub(rb'"[^"]*"', b"", head.split(b"\n", 1)[0])
        marks = b"\t" if self.shown.suffixes[:1] == [".tsv"] else b",;\t|"
        self.delimiter = chr(max(marks, key=lambda mark: first.count(bytes([mark]))))

    def _records(self, content: IO[bytes], state: list[int]) -> Iterator[list[str] | csv.Error]:
        """state: [bytes, lines] that have been read, kept up to date."""

        def lines() -> Iterator[str]:
            for line in content:
                state[0] += len(line)
                state[1] += 1
                text = line.decode("utf-8", "surrogateescape")
                yield text.removeprefix("\ufeff") if state[1] == 1 else text

        records = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        while True:
            try:
                yield next(records)
            except StopIteration:
                return
            except csv.Error as error:
                yield error

    def scan(self) -> Iterator[Found]:
        with open(self.path, "rb") as content:
            self._head(content)
            state = [0, 0]
            records = self._records(content, state)
            self._name_fields(next(records, []))
            offset, line = state[0], state[1] + 1
            for record in records:
                if record:  # an empty line is no row
                    values = lambda record=record, line=line: self._row(record, line)  # noqa: E731
                    yield Found(offset, line, state[0], values)
                offset, line = state[0], state[1] + 1

    def _name_fields(self, names: list[str] | csv.Error) -> None:
        if isinstance(names, csv.Error):
            raise UserError(f"{self.shown}:1: {names}")
        self.fields = [name.strip() for name in names]
        twice = {name for name in self.fields if self.fields.count(name) > 1}
        if twice:
            raise UserError(f"{self.shown}:1: several columns are called {sorted(twice)[0]!r}")

    def _row(self, record: list[str] | csv.Error, line: int) -> dict[str, Any]:
        if isinstance(record, csv.Error):
            reason = f"a quoted field that is not closed ({record})"
            raise BadValue(reason if "end of data" in str(record) else str(record), "not CSV")
        if len(record) != len(self.fields):
            reason = f"{number_of(len(record), 'field')}, the first line names {len(self.fields)}"
            raise BadValue(reason, "another number of fields")
        return {name: value or None for name, value in zip(self.fields, record)}

    def values(self, first: int, second: int, length: int) -> dict[str, Any]:
        if not self.fields:  # the index came from the cache
            with open(self.path, "rb") as content:
                self._head(content)
                self._name_fields(next(self._records(content, [0, 0]), []))
        text = self._read(first, length).decode("utf-8", "surrogateescape")
        lines = io.StringIO(text, newline="")
        return self._row(next(csv.reader(lines, delimiter=self.delimiter, strict=True)), second)


def open_reader(path: Path) -> _FileReader:
    """The reader of a text file of rows. Raises UserError."""
    inner = unpacked(path, kind_of(path)) if path.suffix.lower() in PACKED else path
    kind = kind_of(path)
    with open(inner, "rb") as content:
        if looks_like_utf16(content.read(4096)):
            hint = "convert it to UTF-8, e.g. with iconv -f UTF-16 -t UTF-8"
            raise UserError(f"{path}: looks like UTF-16; {hint}")
    if kind in TABLES:
        return Table(inner, path)
    if kind == ".json" and not _is_lines(inner):
        return JsonArray(inner, path)
    return JsonLines(inner, path)


def _is_lines(path: Path) -> bool:
    """Whether the first line of a .json file is a whole object, as JSON lines have it."""
    with open(path, "rb") as content:
        line = content.readline(1 << 24)
        while line and not line.strip():
            line = content.readline(1 << 24)
        if not line:
            return True  # an empty file: no rows
        try:
            first = json.loads(line.decode("utf-8-sig"))
        except (ValueError, RecursionError):
            return False
        holds_rows = isinstance(first, dict) and any(
            isinstance(first.get(name), list) for name in LISTS
        )
        return isinstance(first, dict) and not (holds_rows and not content.read(1))
