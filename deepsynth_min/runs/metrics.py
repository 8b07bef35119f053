"""What the loop measures: loss, rate, throughput, utilisation, memory, time waiting for data.

In: what each step found, as device tensors and host counts. Out: lines of metrics.jsonl.

The one idea: between two logging steps nothing is read back from the device; a line is written when
the bar is due anyway, and the time spent on evaluating and saving is no training time.
"""

import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import number_of
from ..model.batch import Batch
from ..training.distributed import World
from ..training.optim import LossScaler
from .storage.run_directory import RunDirectory, warn
from .utilisation import Work


def peak_memory(device: torch.device) -> int:
    """Bytes: the most ever allocated on the GPU, or the process's largest resident size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def time_text(seconds: float) -> str:
    """A duration for people, in its two largest units: 45 s, 4 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class Meter:
    """Sums between two logging steps; nothing is read back from the device before `log`."""

    def __init__(
        self, world: World, directory: RunDirectory, global_batch: int, rows: int, work: Work
    ):
        self.world, self.directory, self.work = world, directory, work
        self.global_batch, self.rows = global_batch, rows
        (self.device_rate,) = world.sum(work.rate)  # FLOP/s of all ranks
        self.warned = False
        self.all_idle, self.all_steps = 0.0, 0  # of this process until the last line
        self.rate = self.step_seconds = 0.0  # as of the last line: samples/s; with pauses
        self.mfu = self.wait_share = 0.0  # as of it, too

    def start(self, unlogged: list[list[float]] = ()) -> None:
        """A new interval; `unlogged` are the steps of one that was interrupted."""
        self.began, self.wait, self.idle = time.perf_counter(), 0.0, 0.0
        self.known = [list(step) for step in unlogged]  # [global summed loss, label tokens]
        self.losses, self.counts = [], []  # of the steps after those, on this rank; [micro-steps]
        self.tokens = self.missing = self.truncated = self.left_out = self.steps = self.flops = 0

    def unlogged(self) -> list[list[float]]:
        """[summed loss, label tokens] over all ranks of each step since the last line."""
        # In float64, so that it matters little how the ranks share the micro-steps.
        totals = self.world.sum(*(step.cpu().double().sum() for step in self.losses))
        self.known += [list(step) for step in zip(totals, self.counts)]
        self.steps += len(totals)
        self.losses, self.counts = [], []
        return self.known

    def _timed(self, action: Callable[[], Any]) -> tuple[Any, float]:
        began = time.perf_counter()
        return action(), time.perf_counter() - began

    def waiting(self, action: Callable[[], Any]) -> Any:
        """An action whose time is spent waiting for data."""
        result, seconds = self._timed(action)
        self.wait += seconds
        return result

    def paused(self, action: Callable[[], Any]) -> Any:
        """An action whose time is no training time."""
        result, seconds = self._timed(action)
        self.idle += seconds
        return result

    def add(
        self, losses: Tensor, norm: Tensor, count: float, batches: list[Batch], left_out: float
    ) -> None:
        """What a step has found; losses: the summed loss of each micro-step; left_out: places, over
        all ranks, that held no sample."""
        self.left_out += left_out
        self.truncated += sum(batch.truncated for batch in batches)
        self.losses.append(losses)
        self.counts.append(count)
        self.norm = norm
        self.tokens += sum(batch.tokens for batch in batches)
        self.missing += sum(batch.missing for batch in batches)
        self.flops += self.work.flops(batches)

    def log(self, step: int, rate: float, scaler: LossScaler) -> float:
        """Writes a line of metrics after `step` steps; returns the mean loss since the last.

        A step whose loss was not finite (and which was therefore skipped) is not part of the mean.
        """
        steps = self.unlogged()
        finite = [(total, count) for total, count in steps if math.isfinite(total)]
        loss = sum(t for t, _ in finite) / max(1, sum(c for _, c in finite))
        seconds = time.perf_counter() - self.began - self.idle
        self.all_idle, self.all_steps = self.all_idle + self.idle, self.all_steps + self.steps
        self.rate = self.steps * self.global_batch / seconds
        # Of the last steps, for the first ones are slow; but evaluations are rarer than lines.
        self.step_seconds = seconds / self.steps + self.all_idle / self.all_steps
        tokens, wait, missing, truncated, flops = self.world.sum(
            self.tokens, self.wait, self.missing, self.truncated, self.flops
        )
        wait /= self.world.size
        self.mfu, self.wait_share = flops / seconds / self.device_rate, wait / seconds
        samples = step * self.global_batch
        if self.world.is_main and missing and not self.warned:
            warn(
                f"{number_of(int(missing), 'character')} since the last line could not be drawn as "
                "they should (no font has them, or their script needs shaping); of which scripts "
                "and what mends it: the warnings at the start, or python -m deepsynth_min.check; "
                "counted as missing_glyphs in metrics.jsonl"
            )
            self.warned = True
        if self.world.is_main:
            self.directory.log(
                "train",
                step=step,
                epoch=round(samples / self.rows, 4),
                samples=samples,
                loss=loss,
                lr=rate,
                grad_norm=float(self.norm),
                samples_per_s=self.rate,
                tokens_per_s=tokens / seconds,
                model_flops=int(flops),
                mfu=self.mfu,
                peak_memory_bytes=peak_memory(self.world.device),
                missing_glyphs=int(missing),
                truncated_samples=int(truncated),
                left_out_samples=int(self.left_out),
                data_wait_s=wait,
                data_wait_share=self.wait_share,
                skipped_steps=int(scaler.skipped),
                loss_scale=float(scaler.scale),
            )
        self.start()
        return loss

    def brief(self, loss: float) -> str:
        """What stands behind the progress bar after `log`."""
        return f"loss={loss:.3f}, MFU={self.mfu:.0%}, data wait={self.wait_share:.0%}"

    def line(self, step: int, steps: int, loss: float) -> str:
        """What a log file shows after `log`: where the run is, its rate and the time left."""
        text = f"step {step:>6} of {steps}: loss {loss:.4f}, {self.rate:.3g} samples/s"
        text += f", MFU {self.mfu:.0%}, data wait {self.wait_share:.0%}"
        left = time_text((steps - step) * self.step_seconds)
        return text + (f", {left} left" if step < steps else "")
