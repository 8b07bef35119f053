"""status.json: whether a run is under way, was stopped, is done or has failed, for scripts.

In: a run. Out: RUN/status.json, written by rank 0 at the start, with each line of metrics.jsonl and
at the end:

    status    running, stopped (go on with --resume auto), done, or failed
    step, of  optimizer steps taken, and all there will be
    since     when it came to be so; updated: when it was last written (a run that was killed with
              no time to say so remains `running`, and is no longer updated)
    reason    of stopped and failed, in one line
"""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from ...errors import one_line
from ...files.disk import write_text
from ...training.stopping import Stopper
from .run_directory import RunDirectory

FILE = "status.json"


def read(run: Path) -> dict[str, Any]:
    """What a run says of itself; status "" of one that has not said anything."""
    nothing = {"status": "", "step": 0, "of": 0}
    try:
        return nothing | json.loads((run / FILE).read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return nothing


class Steps(Protocol):
    """What must be known of a run: setup.Training is one."""

    step: int
    finished: bool


class Status:
    """What is written about one run; of other ranks than 0, nothing."""

    def __init__(self, directory: RunDirectory, of: int, is_main: bool):
        self.directory, self.of, self.is_main = directory, of, is_main
        self.status, self.since = "", ""

    def write(self, status: str, step: int, reason: str = "") -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        if status != self.status:
            self.status, self.since = status, now
        if not self.is_main:
            return
        values = {"status": status, "step": step, "of": self.of, "since": self.since}
        text = json.dumps({**values, "updated": now, "reason": reason}, indent=1)
        path = self.directory.path / FILE
        self.directory.attempt(lambda: write_text(path, text + "\n"), FILE)

    @contextmanager
    def followed(self, run: Steps, stopper: Stopper) -> Iterator[None]:
        """Around the loop: says that the run is under way, and in the end how it came out."""
        self.write("running", run.step)
        try:
            yield
        except BaseException as error:
            reason = one_line(error) if str(error) else type(error).__name__
            self.write("failed", run.step, reason)
            raise
        if run.finished:
            self.write("done", run.step)
        else:
            name = signal.Signals(stopper.signal).name if stopper.signal else "another process"
            self.write("stopped", run.step, f"asked to by {name}")
