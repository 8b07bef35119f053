"""Processes killed in the middle of anything: what is resumed ends as the undisturbed run does."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import LAUNCHER, TRAIN, ranks_of, words
from run_files import assert_same_run, exact_lines, losses, weights

from deepsynth_min import train

KILLS, STEPS, FEW_STEPS = 20, 150, 12
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


def test_a_run_killed_once_is_bit_identical_to_an_undisturbed_one(tmp_path, jsonl):
    """As soon as something is being saved: one of the kills of the series below."""
    few, killed, whole = ["--max-steps", FEW_STEPS], tmp_path / "killed", tmp_path / "whole"
    assert train.main(options(whole, jsonl, 2, *few)) == 0
    process = launch(killed, jsonl, 1, *few)
    wait_for_life(process, killed, 0)
    wait_for_a_save(process, killed)
    assert process.poll() is None, log_of(killed)[-3000:]
    kill_all(process)
    assert len(exact_lines(killed)) < len(exact_lines(whole))
    assert train.main(options(killed, jsonl, 2, *few)) == 0
    assert_bit_identical(killed, whole)


# -- the series, and kills among several processes ------------------------------------------------


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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, jsonl):
    """processes -> the run that nothing disturbed."""
    folder, made = tmp_path_factory.mktemp("undisturbed"), {}

    def run(processes: int) -> Path:
        if processes not in made:
            made[processes] = folder / str(processes)
            finish(made[processes], jsonl, processes)
        return made[processes]

    return run


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_killed_twenty_times_is_bit_identical_to_an_undisturbed_one(
    tmp_path, jsonl, undisturbed, processes
):
    """LoRA with dropout and augmentation; some of the kills fall into a save."""
    out = tmp_path / "killed"
    kills, amid = kill_again_and_again(out, jsonl, processes, seed=processes)
    finish(out, jsonl, processes)
    assert kills == KILLS and amid >= 1
    assert_bit_identical(out, undisturbed(processes))


@pytest.mark.slow
def test_torchrun_restarts_a_job_whose_rank_was_killed_and_the_result_is_the_same(
    tmp_path, jsonl, undisturbed
):
    out = tmp_path / "restarted"
    process = launch(out, jsonl, 2, launcher=("--max-restarts", "3"))
    while not (out / "last").exists():
        assert process.poll() is None, log_of(out)[-3000:]
        time.sleep(0.01)
    os.kill(ranks_of(process)[-1], signal.SIGKILL)
    assert process.wait(timeout=300) == 0, log_of(out)[-3000:]
    assert re.search(r"resuming after step \d+", log_of(out))
    assert_bit_identical(out, undisturbed(2))


@pytest.mark.slow
def test_two_one_and_again_two_processes_see_the_same_samples_and_losses(tmp_path, jsonl):
    """Without dropout, which differs from rank to rank; a line for every step."""
    plain = words(
        "--lora-dropout 0 --log-every 1 --max-steps 30 --eval-every 10 --save-every 10 --keep 9"
    )
    reference, out = tmp_path / "two", tmp_path / "changing"
    finish(reference, jsonl, 2, *plain)
    shutil.copytree(reference, out)
    for processes, last in ((1, 10), (2, 20)):
        for path in (out / "checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > last:
                shutil.rmtree(path)
        finish(out, jsonl, processes, *plain)
    assert re.findall(r"resuming after step (\d+)", log_of(out)) == ["10", "20"]
    ours, theirs = exact_lines(out), exact_lines(reference)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for kind in ("train", "eval"):
        assert losses(out, kind) == pytest.approx(losses(reference, kind), rel=1e-6)
    final, other = (weights(run, "adapter_model.safetensors") for run in (out, reference))
    assert max((final[n] - other[n]).abs().max().item() for n in other) < 1e-6
