"""Documents to be read, as a command line names them: files, rows of files, standard input.

In: names. Out: an `Input` for each document, in order: its row, or what is wrong with it.

The one idea: what cannot be read is found here and goes on as a message, so that one bad document
does not stop the others. What a single file is, its content says, not its name.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, not_utf8
from ..options import change
from ..pages.images import is_image
from ..settings import Settings
from .formats.readers import kind_of
from .row import Row
from .sources import open_files


@dataclass(frozen=True)
class Input:
    """A document: a row of some rows, or what is wrong with it."""

    where: str
    rows: Sequence[Row] = ()
    number: int = 0
    error: str = ""

    def row(self) -> Row:
        """Raises UserError."""
        if self.error:
            raise UserError(self.error)
        return self.rows[self.number]


_NO_TEXT = {b"PK\x03\x04": "a ZIP or Office file", b"\x1f\x8b": "a gzip file"}


def read_document(name: str) -> Row:
    """A text, an image or a PDF, told apart by what is in it; - is standard input. Raises
    UserError."""
    where = "standard input" if name == "-" else name
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise UserError(f"{name}: {error.strerror}") from None
    if is_image(data):
        return Row(where, "", images=(data if name == "-" else Path(name),))
    for head, what in _NO_TEXT.items():
        if data.startswith(head):
            raise UserError(f"{where}: {what}, neither text nor an image nor a file of rows")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"neither an image nor text ({not_utf8(data, error)})"
        raise UserError(f"{where}: {reason}") from None
    if "\0" in text:
        raise UserError(f"{where}: neither an image nor text (a NUL at {text.index(chr(0))})")
    if not text.strip():
        raise UserError(f"{where}: no text in it")
    return Row(where, "", text)


def open_inputs(names: list[str], settings: Settings) -> list[Input]:
    """All documents, in the order given; those that cannot be read with the reason."""
    lenient = change(settings, on_bad_row="skip", max_bad=1.0).data
    inputs = []
    for name in names:
        try:
            if kind_of(name) or Path(name).is_dir():
                rows = open_files(name, lenient, answered=False)
                inputs += [Input(rows.where(i), rows, i) for i in range(len(rows))]
                inputs += [
                    Input(fault.where, error=f"{fault.where}: {fault.reason}")
                    for fault in rows.faults
                ]
            else:
                row = read_document(name)
                inputs.append(Input(row.where, [row]))
        except UserError as error:
            inputs.append(Input(name, error=str(error)))
    return inputs
