"""The rows that a run leaves out (--on-bad-row skip): listed, counted, and too many refused.

In: faults found before training, and those that show only when a row is drawn. Out: skipped.jsonl
in the run directory, a line for each row with its reason.

The one idea: a row is listed once, however often its turn comes and whichever rank it falls to;
rank 0 alone writes, and what it decides all ranks do.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..data.row import TooLong
from ..data.rows import is_skipped, refuse_bad_rows
from ..data.samples import SampleBuilder
from ..data.sources import Data
from ..errors import UserError
from ..files.disk import append_whole
from ..files.index import Fault
from ..settings import DataSettings
from ..training.distributed import World, broadcast_text, gather_lists
from .storage.run_directory import warn

FILE = "skipped.jsonl"
LONGEST = 20_000  # rows whose answers are measured before training


class LeftOut:
    """Keeps the list. Every rank calls `add` in the same step; rank 0 writes."""

    def __init__(
        self,
        directory: Path,
        found: Sequence[Fault],
        rows: int,
        settings: DataSettings,
        world: World,
    ):
        """found: rows known before the first step that are left out; rows: all there are."""
        self.path, self.world = directory / FILE, world
        self.settings, self.total = settings, rows
        self.listed: dict[str, str] = {}  # where -> reason
        if world.is_main:
            self._list(found)

    def _list(self, faults: Sequence[Fault]) -> list[Fault]:
        """Adds those that are not listed yet to the file, and returns them."""
        if self.path.is_file() and not self.listed:  # the run goes on
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                    self.listed[entry["row"]] = entry["reason"]
                except (ValueError, KeyError, TypeError):  # the line that a kill cut off
                    continue
            self._write(self.listed, "wb")
        new = {f.where: f.reason for f in faults if f.where not in self.listed}
        self.listed |= new
        self._write(new, "ab")
        return [f for f in faults if f.where in new]

    def _write(self, entries: dict[str, str], mode: str) -> None:
        """A disk that refuses costs the lines and not the run."""
        lines = (
            json.dumps({"row": row, "reason": reason}, ensure_ascii=False) + "\n"
            for row, reason in entries.items()
        )
        try:
            if entries:
                with open(self.path, mode, buffering=0) as file:
                    append_whole(file, "".join(lines))
        except OSError as error:
            warn(f"{self.path}: rows that are left out could not be listed: {error.strerror}")

    def add(self, faults: Sequence[Fault]) -> None:
        """Those that this rank found in a step. Raises UserError on all ranks if they are too many
        by now."""
        found = gather_lists(self.world, [list(fault) for fault in faults])
        message = ""
        if self.world.is_main:
            for fault in self._list([Fault(*fault) for fault in found]):
                warn(f"left out: {fault.where}: {fault.reason}")
            if len(self.listed) > self.settings.max_bad * self.total:
                message = (
                    f"{len(self.listed):,} of {self.total:,} rows cannot be used, more than "
                    f"--max-bad {self.settings.max_bad:g}; they are listed in {self.path}"
                )
        message = broadcast_text(self.world, message)
        if message:
            raise UserError(message)


def refuse_long_answers(data: Data, settings: DataSettings, builder: SampleBuilder) -> None:
    """Finds answers that can never fit before training begins, among the longest rows: adds them to
    the data's faults, or raises UserError."""
    if settings.on_too_long == "truncate":
        return
    found = []
    for rows in data.files:
        for i in rows.longest(LONGEST, builder.context):
            try:
                builder.check_answer(rows[i])
            except TooLong as error:
                found.append(Fault(error.where, error.reason, error.kind))
    if found:
        good = sum(map(len, data.files)) - len(found)
        policy = "skip" if is_skipped(settings, too_long=True) else "error"
        refuse_bad_rows(data.faults + found, good, replace(settings, on_bad_row=policy))
        data.faults += found
