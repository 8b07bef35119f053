"""Files and directories that are there whole or not at all.

In: what to write. Out: it, on the disk, under its name; or a WriteError and nothing.

The one idea: everything is written under a temporary name, flushed and renamed, so whatever stands
under its own name was finished, whenever the machine stopped.
"""

import os
import shutil
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


def write_text(path: Path, text: str) -> None:
    """Replaces a small file at once: never half of it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    os.replace(partial, path)


class WriteError(UserError):
    """The system refused to store something (a full disk, a missing permission)."""


@contextmanager
def whole_directory(final: Path):
    """Gives a directory to fill, which gets its name when it is complete and on the disk.

    What had the name before is replaced. If anything goes wrong nothing stays behind; what the
    system refused (a full disk, a missing permission) is a WriteError.
    """
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
        readable = partial.stat().st_mode & 0o666  # as the umask says; safetensors writes 0600
        for file in partial.iterdir():
            file.chmod(readable)
            flush(file)
        flush(partial)
        shutil.rmtree(final, ignore_errors=True)
        os.rename(partial, final)
        flush(final.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WriteError(f"{final}: could not be written: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
