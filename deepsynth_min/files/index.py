"""Where each row of a data file is: found once, kept on disk, mapped into memory.

In: a data file and a function that goes through its rows, checks them and gives two numbers of
each. Out: int64 [rows, 2]; of a .jsonl file the byte offset and the line number, of a .parquet file
the row group and the size.

The one idea: a file is read from end to end once, to check every row and to index where it starts;
the index of a large one goes to the cache folder, under a name made from the file's path, size,
time of change and the settings of the check. After that a start costs one memory map, however many
rows there are, and no row is ever held in memory.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

CACHED_FROM = 32 * 2**20  # bytes of data: reading less again is as fast as keeping an index
_BUFFER = 1 << 16  # numbers collected before they are written

Rows = Callable[[], Iterator[tuple[int, int, int]]]  # the two numbers, and where the row ends


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/deepsynth_min, by default ~/.cache/deepsynth_min."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deepsynth_min"


def row_index(
    file: Path, rows: Rows, check_settings: dict[str, object], progress: bool = False
) -> np.ndarray:
    """int64 [rows, 2] of `file`.

    rows() yields (number, number, bytes of the file up to the row's end) and raises for a row that
    cannot be used; check_settings: what decides which rows those are. progress: show a bar.
    """
    state = file.stat()
    if state.st_size < CACHED_FROM:
        numbers = array("q")
        _scan(file, rows, progress, numbers, lambda: None)
        return np.array(numbers, dtype=np.int64).reshape(-1, 2)
    facts = [str(file.resolve()), state.st_size, state.st_mtime_ns, check_settings, 1]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    index = cache_folder() / f"{name}.rows"
    if not index.is_file() or not index.stat().st_size or index.stat().st_size % 16:
        _write(index, file, rows, progress)
    return np.memmap(index, dtype=np.int64, mode="r").reshape(-1, 2)


def _write(index: Path, file: Path, rows: Rows, progress: bool) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    partial = index.with_name(f".{index.name}.{os.getpid()}.partial")
    numbers = array("q")
    try:
        with open(partial, "wb") as out:

            def spill() -> None:
                numbers.tofile(out)
                del numbers[:]

            _scan(file, rows, progress, numbers, spill)
            spill()
        os.replace(partial, index)
    finally:
        partial.unlink(missing_ok=True)


def _scan(
    file: Path, rows: Rows, progress: bool, numbers: array, empty_buffer: Callable[[], None]
) -> None:
    """Appends the numbers of every row; calls empty_buffer() when they are many."""
    size = file.stat().st_size
    quiet = not progress or size < CACHED_FROM
    with tqdm(
        total=size,
        unit="B",
        unit_scale=True,
        desc=f"checking {file.name}",
        leave=False,
        disable=quiet,
    ) as bar:
        for first, second, end in rows():
            numbers.extend((first, second))
            if len(numbers) >= _BUFFER:
                empty_buffer()
            bar.update(end - bar.n)


def lines(file: Path, check: Callable[[bytes, int], object]) -> Iterator[tuple[int, int, int]]:
    """Yields (offset, line number, end) of each line of a file; `check(line, line_number)` raises
    for one that cannot be used. Blank lines are no rows."""
    offset = 0
    with open(file, "rb") as content:
        for line_number, line in enumerate(content, 1):
            end = offset + len(line)
            if line.strip():
                check(line, line_number)
                yield offset, line_number, end
            offset = end
