"""Compressed files -> their content, unpacked once into the cache folder.

In: a .gz, .bz2, .xz or .zst file. Out: the path of what was in it, under a name made from the
file's path, size and time of change.

The idea: rows are read at random, which compressed files do not allow.
"""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import zlib
from pathlib import Path
from typing import IO

from ..errors import UserError, find_file
from .index import cache_folder

PACKED = (".gz", ".bz2", ".xz", ".zst")


def _zstandard(path: Path) -> IO[bytes]:
    try:
        import pyarrow
    except ImportError:
        raise UserError(
            f"{path}: .zst needs pyarrow: pip install 'deepsynth-min[parquet]'"
        ) from None
    return pyarrow.input_stream(str(path), compression="zstd")


_OPENERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstandard}
_LEAST_FREE = 2**30  # bytes that unpacking leaves free on the disk


def unpacked(path: Path, suffix: str) -> Path:
    """The content of a compressed file: a file of the cache folder whose name ends in `suffix`.

    Raises UserError.
    """
    state = find_file(path).stat()
    facts = json.dumps([str(path.resolve()), state.st_size, state.st_mtime_ns])
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    target = cache_folder() / f"{name}{suffix}"
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with _OPENERS[path.suffix.lower()](path) as source, open(partial, "wb") as out:
            while piece := source.read(1 << 20):
                if shutil.disk_usage(target.parent).free < _LEAST_FREE:
                    raise UserError(f"{path}: unpacked into {target.parent} it fills the disk")
                out.write(piece)
        os.replace(partial, target)
    except UserError:
        raise
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked ({error})") from None
    finally:
        partial.unlink(missing_ok=True)
    return target
