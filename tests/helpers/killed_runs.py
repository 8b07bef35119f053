"""Runs that are started, killed in the middle of anything, and gone on with."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from commands import LAUNCHER, TRAIN, ranks_of, words
from run_files import assert_same_run

KILLS, STEPS = 20, 150
COMMON = (
    "--model tiny --tune lora --lora-dropout 0.2 --augment --log-every 3 --keep 2 --save-every 2 "
    "--eval-every 50 --val-samples 2 --answer-samples 1 --ablation-samples 2 --max-new-tokens 4 "
    "--device cpu --threads 1 --resume auto"
).split()


def options(out: Path, jsonl: Path, batch_size: int, *more) -> list[str]:
    given = words("--batch-size {} --data {} --out {}", batch_size, jsonl, out)
    return [*COMMON, "--max-steps", str(STEPS), *given, *map(str, more)]


def launch(out: Path, jsonl: Path, processes: int, *more, launcher=()) -> subprocess.Popen:
    """A run that says what it has to say in OUT.log."""
    start = [*LAUNCHER, str(processes), *launcher, *TRAIN] if processes > 1 else TRAIN
    command = [sys.executable, *start, *options(out, jsonl, 2 // processes, *more)]
    with open(out.with_suffix(".log"), "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def kill_all(launcher: subprocess.Popen) -> None:
    """The launcher and its ranks, as when a machine loses its power."""
    numbers = [launcher.pid, *ranks_of(launcher)]
    for number in numbers:
        os.kill(number, signal.SIGKILL)
    launcher.wait()
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        time.sleep(0.01)


def log_of(out: Path) -> str:
    return out.with_suffix(".log").read_text(errors="replace")


def finish(out: Path, jsonl: Path, processes: int, *more) -> None:
    assert launch(out, jsonl, processes, *more).wait(timeout=600) == 0, log_of(out)[-3000:]


def metrics_size(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def saving(out: Path) -> list[Path]:
    return list((out / "checkpoints").glob(".step-*.partial"))


def assert_bit_identical(out: Path, reference: Path) -> None:
    assert_same_run(out, reference, "adapter_model.safetensors", "optimizer.safetensors")
    assert not saving(out)


def wait_for_life(process: subprocess.Popen, out: Path, before: int) -> None:
    """So that a kill falls into training or saving rather than into imports."""
    while process.poll() is None and metrics_size(out) <= before:
        time.sleep(0.005)


def wait_for_a_save(process: subprocess.Popen, out: Path) -> None:
    while process.poll() is None and not saving(out):
        time.sleep(0.001)  # it may run on the same core


def kill_in_a_later_save(process: subprocess.Popen, out: Path) -> None:
    """When there is a checkpoint to go on from, and something is being saved again."""
    while process.poll() is None and not (out / "last").exists():
        time.sleep(0.002)
    wait_for_a_save(process, out)
    assert process.poll() is None, log_of(out)[-3000:]
    kill_all(process)


def kill_again_and_again(out: Path, jsonl: Path, processes: int, seed: int) -> tuple[int, int]:
    """(kills, those of them in the middle of a save), until there were KILLS or the run ended."""
    chance, kills, amid = random.Random(seed), 0, 0
    while kills < KILLS:
        process, before = launch(out, jsonl, processes), metrics_size(out)
        wait_for_life(process, out, before)
        if kills % 3 == 0:  # every third one as soon as something is being saved
            wait_for_a_save(process, out)
        else:
            time.sleep(chance.random() * 0.3)
        if process.poll() is not None:
            assert process.returncode == 0, log_of(out)[-3000:]
            break
        kill_all(process)
        kills, amid = kills + 1, amid + bool(saving(out))
    return kills, amid
