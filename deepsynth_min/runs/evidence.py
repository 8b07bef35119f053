"""What a process leaves behind when it hangs or dies, and a profile of a step that was asked for.

In: a run that trains. Out, in RUN/evidence/, from every rank N:

    stacks-rank-N.txt        Python stacks of all threads: of a step that takes longer than
                             --timeout, while it does; of an error that ends the process, behind its
                             traceback; of a crash, as by NCCL, whose watchdog aborts a process that
                             waits too long
    collectives-rank-N.json  the last collectives, of torch's flight recorder: what was asked for,
                             of which size, and whether it came to an end
    nccl-rank-N              the same as NCCL's watchdog writes it before it aborts the process
                             (pickled; PyTorch's tools read it)
    memory-rank-N.pickle     out of memory on a GPU: what its memory holds, for
                             pytorch.org/memory_viz; on the CPU torch keeps no such account, and
                             nothing is written

and RUN/profile/step-K-rank-N.json with --profile-step K, for Perfetto or chrome://tracing.

The one idea: a hung process cannot say so itself. faulthandler's own thread writes the stacks, with
no help of the interpreter, unless the step is over before.
"""

import faulthandler
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

import torch

from ..errors import UserError
from ..training.distributed import World, flight_record
from .storage.run_directory import RunDirectory, warn

NOTHING_TO_SEE = (UserError, KeyboardInterrupt, SystemExit)  # they say what is wrong


class Evidence:
    """While it is entered, what hangs or dies leaves its stacks; a run that ends well, nothing."""

    def __init__(self, run: RunDirectory, world: World, timeout: int):
        self.run, self.world, self.timeout = run, world, timeout
        self.folder, self.file = run.path / "evidence", None

    def path(self, name: str, ending: str) -> Path:
        return self.folder / f"{name}-rank-{self.world.rank}{ending}"

    def __enter__(self) -> "Evidence":
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(self.folder.absolute() / "nccl-rank-"))
        self.before = faulthandler.is_enabled()
        self.run.attempt(self._open, "the evidence of errors")
        if self.file is not None:
            faulthandler.enable(self.file)
        return self

    def _open(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self.file = open(self.path("stacks", ".txt"), "a", encoding="utf-8")

    def step_begins(self) -> None:
        """From now on a step may take --timeout."""
        if self.file is not None:
            faulthandler.dump_traceback_later(self.timeout, file=self.file)

    def step_ends(self) -> None:
        """What follows may take longer: an evaluation, a save."""
        faulthandler.cancel_dump_traceback_later()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.step_ends()
        if error is not None and not isinstance(error, NOTHING_TO_SEE):
            self.run.attempt(lambda: self._write(error), "the evidence of an error")
        if self.file is not None:
            faulthandler.disable()
            self._close()
        if self.before:
            faulthandler.enable(sys.__stderr__)

    def _write(self, error: BaseException) -> None:
        if isinstance(error, torch.OutOfMemoryError) and self.world.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(self.path("memory", ".pickle")))
        if self.file is None:
            return
        self.file.write(f"{datetime.now().astimezone().isoformat(timespec='seconds')}\n")
        traceback.print_exception(error, file=self.file)
        self.file.flush()
        faulthandler.dump_traceback(self.file)
        if record := flight_record():
            self.path("collectives", ".json").write_text(record, encoding="utf-8")
        warn(f"rank {self.world.rank}: {self.path('stacks', '.txt')} has the stacks of its threads")

    def _close(self) -> None:
        self.file.close()
        path = Path(self.file.name)
        with suppress(OSError):  # another process is as far
            if not path.stat().st_size:
                path.unlink()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


@contextmanager
def profiled(run: RunDirectory, world: World, step: int, chosen: int) -> Iterator[None]:
    """Around a step, counted from 1: if it is `chosen`, writes down what takes its time."""
    if step != chosen:
        yield
        return
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds, record_shapes=True) as profile:
        yield
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
    path = run.path / "profile" / f"step-{step}-rank-{world.rank}.json"

    def write() -> None:
        path.parent.mkdir(exist_ok=True)
        profile.export_chrome_trace(str(path))

    run.attempt(write, "the profile")
