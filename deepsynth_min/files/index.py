"""Where each row of a data file is: found once, kept on disk, mapped into memory.

In: a data file and a function that goes through its rows, checks them and gives two numbers of each
good one. Out: int64 [rows, 2], what the file's reader finds a row again by (data/formats), and
the faults: rows that cannot be used.

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
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..errors import UserError

CACHED_FROM = 32 * 2**20  # bytes of data: reading less again is as fast as keeping an index
MOST_FAULTS = 1_000_000  # that are kept: more of them are another format, not bad rows
_BUFFER = 1 << 16  # numbers collected before they are written
_FORMAT = 2  # of what is kept


class Fault(NamedTuple):
    """A row that cannot be used: where, why, and what kind of fault that is, to be counted by."""

    where: str
    reason: str
    kind: str


# The two numbers, and where the row ends; or a fault and where it ends.
Rows = Callable[[], Iterator[tuple[int, int, int] | tuple[Fault, int]]]


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/deepsynth_min, by default ~/.cache/deepsynth_min."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "deepsynth_min"


def row_index(
    file: Path, rows: Rows, check_settings: dict[str, object], progress: bool = False
) -> tuple[np.ndarray, list[Fault]]:
    """(int64 [good rows, 2], the others) of `file`.

    rows() yields (number, number, bytes of the file up to the row's end), for a row that cannot be
    used (fault, those bytes); check_settings: what decides which rows those are. progress: show a
    bar.
    """
    state, faults = file.stat(), []
    if state.st_size < CACHED_FROM:
        numbers = array("q")
        _scan(file, rows, progress, numbers, faults, lambda: None)
        return np.array(numbers, dtype=np.int64).reshape(-1, 2), faults
    facts = [str(file.resolve()), state.st_size, state.st_mtime_ns, check_settings, _FORMAT]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    index = cache_folder() / f"{name}.rows"
    beside = index.with_suffix(".faults")
    size = index.stat().st_size if index.is_file() else None
    if size is None or size % 16 or (size == 0 and not beside.is_file()):
        _write(index, file, rows, progress, faults)
    elif beside.is_file():
        faults = [Fault(*fault) for fault in json.loads(beside.read_text(encoding="utf-8"))]
    if not index.stat().st_size:
        return np.empty((0, 2), dtype=np.int64), faults
    return np.memmap(index, dtype=np.int64, mode="r").reshape(-1, 2), faults


def _write(index: Path, file: Path, rows: Rows, progress: bool, faults: list[Fault]) -> None:
    index.parent.mkdir(parents=True, exist_ok=True)
    partial = index.with_name(f".{index.name}.{os.getpid()}.partial")
    numbers = array("q")
    try:
        with open(partial, "wb") as out:

            def spill() -> None:
                numbers.tofile(out)
                del numbers[:]

            _scan(file, rows, progress, numbers, faults, spill)
            spill()
        if faults:  # before the index, which says that both are there
            beside = partial.with_name(f"{partial.name}.faults")
            beside.write_text(json.dumps(faults), encoding="utf-8")
            os.replace(beside, index.with_suffix(".faults"))
        os.replace(partial, index)
    finally:
        partial.unlink(missing_ok=True)


def _scan(
    file: Path,
    rows: Rows,
    progress: bool,
    numbers: array,
    faults: list[Fault],
    empty_buffer: Callable[[], None],
) -> None:
    """Appends the numbers of every good row, and the others; calls empty_buffer() when the numbers
    are many."""
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
        for found in rows():
            if len(found) == 2:
                faults.append(found[0])
                if len(faults) > MOST_FAULTS:
                    raise UserError(f"{faults[0].where}: {faults[0].reason} ({len(faults):,} rows)")
            else:
                numbers.extend(found[:2])
                if len(numbers) >= _BUFFER:
                    empty_buffer()
            bar.update(found[-1] - bar.n)
