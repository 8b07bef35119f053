"""The checkpoints of one run: how they are written, which are kept, which is the last and the best.

In: a run's state at a step. Out: files in its run directory (checkpoint.py and shard.py write
them).

The one idea: the loop says what is to be saved and goes on; a disk that refuses costs the
checkpoint and not the run, for the one before is still there. Only where it refused the last one
the run has failed, and says so when it ends.
"""

from collections.abc import Callable
from concurrent import futures
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from ...files.disk import WriteError
from ...settings import RunSettings
from ...training import checkpoint, shard
from ...training.distributed import World, barrier, broadcast_text
from ...training.host_copy import HostCopier
from ...training.optim import LossScaler
from .mirror import Mirror
from .run_directory import RunDirectory, warn


class BackgroundWriter:
    """Writes checkpoints in a thread of its own, one after the other, while training goes on."""

    def __init__(self):
        self.pool = futures.ThreadPoolExecutor(1, thread_name_prefix="saving")
        self.running: futures.Future | None = None

    def start(self, write: Callable) -> None:
        """Calls write() in the background; the one before must have been waited for."""
        self.running = self.pool.submit(write)

    def wait(self, seconds: float | None = None) -> bool:
        """Until nothing is being written, or so many seconds; returns whether nothing is any more.
        Raises what the writing raised."""
        if self.running is not None:
            if futures.wait([self.running], seconds).not_done:
                return False
            running, self.running = self.running, None
            running.result()
        return True


class CheckpointManager:
    """Saves a run's model, optimizer and scaler; they are looked at when `save` is called."""

    def __init__(
        self,
        directory: RunDirectory,
        world: World,
        run: RunSettings,
        model: nn.Module,
        eval_model: nn.Module,
        base: Path,
        optimizer: torch.optim.Optimizer,
        scaler: LossScaler,
        notes: dict[str, str],
        mirror: Mirror | None,
    ):
        """run: the run's settings. eval_model: an undivided copy, if the model that trains is in
        shards, else the model itself. base: where config and tokenizer files lie. notes: name and
        text of further files in each checkpoint; mirror: rank 0's, where there is one."""
        self.directory, self.world, self.settings = directory, world, run
        self.model, self.eval_model, self.base = model, eval_model, base
        self.optimizer, self.scaler, self.notes = optimizer, scaler, notes
        self.mirror = mirror
        self.newest: Path | None = None  # written by this process, or gone on from
        self.tried: int | None = None  # the step of the last attempt
        self.failure = ""  # of that attempt
        self.writer = BackgroundWriter()
        self.sharded = eval_model is not model
        self.saving_world = world.apart(run.timeout) if self.sharded else world
        self.copier = HostCopier(world.device)

    def going_on_from(self, checkpoint: Path, step: int) -> None:
        """The run starts with what this one holds; it need not be saved once more."""
        self.newest, self.tried = checkpoint, step

    def save(self, facts: dict, is_best: bool) -> None:
        """A checkpoint of facts["step"]; all ranks call it.

        The state is copied now and written in the background; with --no-async-save it is written
        now. Of shards every rank writes its part.
        """
        self.tried = facts["step"]
        self._wait_together()  # no more than one copy is held
        if self.sharded or self.world.is_main:
            write = self._copied(facts)
            self.writer.start(lambda: self._write(write, facts["step"], is_best))
        if not self.settings.async_save:
            self._wait_together()
        if self.world.is_main:
            self.directory.write_report()
        barrier(self.world)

    def _copied(self, facts: dict) -> Callable[[], Path]:
        """What writes the checkpoint of this moment and returns its path. Beside the copy it looks
        at nothing that the loop changes."""
        folder, settings = self.directory.checkpoints, self.settings
        model, beside = self.model, (self.base, self.notes)
        if self.sharded:
            state = self.eval_model, self.optimizer, self.scaler
            part = shard.take_part(model, *state, facts, self.world)
            return lambda: shard.save(folder, part, model, *beside, self.saving_world)
        snapshot = checkpoint.take_snapshot(
            model, self.optimizer, self.scaler, facts, settings.async_save, self.copier
        )
        return lambda: checkpoint.save(folder, snapshot, model, *beside)

    def before_change(self) -> None:
        """To be called before the optimizer's step: of what is saved the copies come first."""
        self.copier.before_change()

    def wait(self) -> None:
        """Until nothing is being written."""
        self.writer.wait()

    def _wait_together(self) -> None:
        """The same; all ranks call it. They hear from each other again and again, since a slow
        disk may take longer than --timeout to write a large model."""
        seconds = min(5.0, self.settings.timeout / 4)
        while self.world.sum(not self.writer.wait(seconds))[0]:
            pass

    def finish(self) -> None:
        """Until nothing is being written; all ranks call it. Raises WriteError on all of them if
        the last checkpoint could not be: what was trained since the one before is lost."""
        self._wait_together()
        message = ""
        if self.failure:
            newest = f"the newest whole one is {self.newest}" if self.newest else "there is none"
            message = (
                f"the last checkpoint, of step {self.tried}, is lost: {self.failure}; {newest}"
            )
        message = broadcast_text(self.world, message)
        if message:
            raise WriteError(message)

    def _write(self, write: Callable[[], Path], step: int, is_best: bool) -> None:
        try:
            self._written(write(), is_best)
        except (WriteError, OSError) as error:
            self.failure = str(error)
            if self.world.is_main:
                warn(f"no checkpoint of step {step}: {error}")

    def _written(self, path: Path, is_best: bool) -> None:
        self.newest, self.failure = path, ""
        if not self.world.is_main:
            return
        self.directory.mark("last", path.name)
        if is_best:
            self.directory.mark("best", path.name)
        best = self.directory.path / "best"
        kept = best.read_text(encoding="utf-8").strip() if best.exists() else None
        with self.mirror.removing() if self.mirror else nullcontext() as sending:
            checkpoint.prune(self.directory.checkpoints, self.settings.keep, kept, sending)
