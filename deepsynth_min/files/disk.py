"""Files and directories that are there whole or not at all.

In: what to write. Out: it, on the disk, under its name; or a WriteError and nothing. What the user
named in an option is written in `writing`, so that a refusal is one line that names it.

The one idea: everything is written under a temporary name, flushed and renamed, so whatever stands
under its own name was finished, whenever the machine stopped. A directory that is replaced is first
renamed too (no system call that Python has replaces a full directory at once), and is removed only
when its successor has the name: a kill between the two renames leaves both of them whole, and
`undo_unfinished` gives the name back.
"""

import fcntl
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import UserError


def flush(path: Path) -> None:
    """Forces a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces a small file at once: never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        flush(partial)
        os.replace(partial, path)
    except OSError:
        if partial.is_file():
            partial.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """The same with text, in UTF-8."""
    write_bytes(path, text.encode())


def append_whole(file: io.FileIO, text: str) -> None:
    """Adds text at the end of a file that is open without a buffer; if the system refuses some of
    it, all of it. Half a character, as of file names that are not UTF-8, is written as JSON has
    it."""
    start, data = file.seek(0, os.SEEK_END), text.encode("utf-8", "backslashreplace")
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.truncate(start)
        raise


class WriteError(UserError):
    """The system refused to store something (a full disk, a missing permission)."""


# -- what the user named --------------------------------------------------------------------------


def check_name(option: str, path: str | Path) -> None:
    """Raises UserError for what cannot be a file's name."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:  # half of a surrogate pair
        possible = False
    if not possible:
        raise UserError(f"{option} {path}: not a possible file name")


def check_file(option: str, path: str | Path) -> None:
    """Raises UserError if no file can be written there: better before long work than after it."""
    check_name(option, path)
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        raise UserError(f"{option} {path}: is a folder")
    if not os.path.isdir(folder):
        raise UserError(f"{option} {path}: No such file or directory: {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {folder} may not be written to")


PAGE_HEAD = '<!doctype html><html lang="en">'  # of the pages that commands write


def check_page(option: str, path: str | Path) -> None:
    """`check_file` for an HTML page, which replaces one of before and no other file."""
    check_file(option, path)
    if not os.path.isfile(path):
        return
    with writing(option, path), open(path, "rb") as file:
        head = file.read(len(PAGE_HEAD))
    if head and head != PAGE_HEAD.encode():
        raise UserError(f"{option} {path}: exists, and is no page of this command; give another")


@contextmanager
def writing(option: str, path: str | Path) -> Iterator[None]:
    """Around the writing of what an option names: what the system refuses is a WriteError."""
    check_name(option, path)
    try:
        yield
    except OSError as error:
        raise WriteError(f"{option} {path}: {error.strerror or error}") from None


# -- directories ----------------------------------------------------------------------------------


def partial_name(final: Path) -> Path:
    """Where a directory is filled before it gets its name."""
    return final.with_name(f".{final.name}.partial")


def _replaced_name(final: Path) -> Path:
    """Where the one before it waits until then."""
    return final.with_name(f".{final.name}.replaced")


@contextmanager
def whole_directory(final: Path) -> Iterator[Path]:
    """Gives a directory to fill, which gets its name when it is complete and on the disk.

    What had the name before is replaced. If anything goes wrong that stays and nothing else does;
    what the system refused (a full disk, a missing permission) is a WriteError.
    """
    partial = partial_name(final)
    try:
        undo_unfinished(final)
        partial.mkdir(parents=True)
        yield partial
        readable = partial.stat().st_mode & 0o666  # as the umask says; safetensors writes 0600
        for file in partial.iterdir():
            file.chmod(readable)
            flush(file)
        flush(partial)
        _give_name(partial, final)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WriteError(f"{final}: could not be written: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _give_name(partial: Path, final: Path) -> None:
    """Renames a finished directory, in place of the one that has the name now."""
    replaced = _replaced_name(final)
    if final.is_dir() and not final.is_symlink():
        os.rename(final, replaced)
    try:
        os.rename(partial, final)
    except OSError:
        undo_unfinished(final)
        raise
    flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def undo_unfinished(final: Path) -> None:
    """Clears away what a kill in the middle of `whole_directory(final)` may have left."""
    shutil.rmtree(partial_name(final), ignore_errors=True)
    replaced = _replaced_name(final)
    if not final.exists() and replaced.is_dir():
        os.rename(replaced, final)
    shutil.rmtree(replaced, ignore_errors=True)


def undo_all_unfinished(folder: Path) -> None:
    """`undo_unfinished` for every name in a folder."""
    for suffix in (".partial", ".replaced"):
        for left in folder.glob(f".*{suffix}"):
            undo_unfinished(left.with_name(left.name[1:].removesuffix(suffix)))


# -- who may write --------------------------------------------------------------------------------


def lock(handle: int, refusal: str) -> None:
    """Holds an open file or folder for this process until the handle is closed; raises
    UserError(refusal) if another one holds it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(refusal) from None


@contextmanager
def locked(folder: Path, refusal: str) -> Iterator[None]:
    """Holds a folder while the block runs."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        lock(handle, refusal)
        yield
    finally:
        os.close(handle)
