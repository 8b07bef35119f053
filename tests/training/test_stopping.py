"""Ctrl-C, as a terminal sends it: a run saves and ends, anything else ends with one line."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import LAUNCHER, TRAIN, begun, python, start, words
from run_files import lines

from deepsynth_min import train
from deepsynth_min.training import checkpoint
from deepsynth_min.training.stopping import AGAIN_SECONDS, STOPPING

COMMON = words(
    "--model tiny --tune lora --val-samples 2 --answer-samples 1 --max-new-tokens 4 --log-every 1 "
    "--eval-every 0 --ablation-samples 0"
)


def saved_step(out: Path, jsonl: Path, *options) -> int:
    """The step of the one checkpoint, which is whole; the run goes on from it."""
    (path,) = checkpoint.all_checkpoints(out / "checkpoints")
    assert checkpoint.damage(path) is None
    step = int(path.name.removeprefix("step-"))
    more = words("--max-steps {} --resume auto --data {} --out {}", step + 1, jsonl, out)
    assert train.main([*COMMON, *options, *more]) == 0
    assert [line["step"] for line in lines(out, "train")] == list(range(1, step + 2))
    return step


def test_ctrl_c_saves_says_so_and_the_run_can_go_on(tmp_path, jsonl):
    out = tmp_path / "r"
    given = words("--batch-size 2 --max-steps 5000 --data {} --out {}", jsonl, out)
    process = start(*TRAIN, *COMMON, *given)
    begun(process, out)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and errors.splitlines().count(STOPPING) == 1
    assert "Traceback" not in errors
    status = json.loads((out / "status.json").read_text())
    step = saved_step(out, jsonl, "--batch-size", "2")
    assert re.search(rf"stopped after step {step}; go on with .* --resume auto", printed)
    assert (status["status"], status["step"], status["of"]) == ("stopped", step, 5000)
    assert status["reason"] == "asked to by SIGINT" and status["since"] <= status["updated"]
    status = json.loads((out / "status.json").read_text())
    assert (status["status"], status["step"], status["of"]) == ("done", step + 1, step + 1)


@pytest.mark.slow
def test_ctrl_c_under_torchrun_saves_on_all_ranks(tmp_path, jsonl):
    """The launcher passes the signal on to its ranks, waits for them and fails."""
    out = tmp_path / "r"
    given = words("--batch-size 1 --max-steps 5000 --data {} --out {}", jsonl, out)
    process = start(*LAUNCHER, 2, *TRAIN, *COMMON, *given)
    begun(process, out)
    os.killpg(process.pid, signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    ours = errors.split("Traceback")[0]  # the launcher's own
    assert ours.splitlines().count(STOPPING) == 1 and errors.count("Traceback") == 1
    step = saved_step(out, jsonl, "--batch-size", "2")
    assert f"stopped after step {step};" in printed


# A product of matrices that takes a minute: the main thread runs no Python in it.
BUSY = """
import torch
from deepsynth_min.training.stopping import Stopper
a = torch.zeros(8000, 8000, dtype=torch.float64)
with Stopper():
    print("ready", flush=True)
    a @ a
"""


@pytest.mark.slow  # until a launcher would have repeated the first
def test_a_second_signal_ends_at_once_unless_a_launcher_repeats_the_first():
    """The launcher may also repeat it as another: torchrun makes SIGTERM of a second Ctrl-C."""
    second = (signal.SIGINT, signal.SIGTERM)
    processes = [start("-c", BUSY) for _ in second]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 2
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        for process in processes:
            process.send_signal(number)
        time.sleep(0.1)
    time.sleep(AGAIN_SECONDS)
    assert [process.poll() for process in processes] == [None, None]
    for process, number in zip(processes, second):
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 128 + number
        assert errors.splitlines() == [STOPPING, "stopped"]


def interrupted(process: subprocess.Popen, when: Callable[[], bool]) -> tuple[int, str]:
    """(exit code, what was printed on stderr) of a process that gets Ctrl-C when `when` is true."""
    while not when():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    return process.returncode, errors


@pytest.mark.parametrize("command", ["train", "check", "export"])
def test_ctrl_c_while_a_command_is_imported_is_one_line(command):
    process = start("-m", f"deepsynth_min.{command}")
    maps = Path(f"/proc/{process.pid}/maps")
    assert interrupted(process, lambda: "libtorch" in maps.read_text()) == (130, "stopped\n")


def test_ctrl_c_while_a_command_works_is_one_line(tmp_path):
    (tmp_path / "long.txt").write_text("a line\n" * 20_000)
    out = tmp_path / "pages"
    process = start("-m", "deepsynth_min.render", tmp_path / "long.txt", "--out", out)
    assert interrupted(process, (out / "page-0001.png").exists) == (130, "stopped\n")
    assert not (out / "page-0400.png").exists()


@pytest.mark.slow
def test_ctrl_c_while_processes_read_the_data_is_one_line(tmp_path):
    """All processes of a terminal's command line get the signal."""
    row = {"text": "Some words. " * 200, "summary": "Some words."}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 20_000)
    given = words("--workers 2 --html none --data {}", tmp_path / "rows.jsonl")
    process = start("-m", "deepsynth_min.check", *given)
    code, errors = interrupted(process, lambda: len(children(process)) > 2)
    assert (code, errors.splitlines()[-1]) == (130, "stopped") and "Traceback" not in errors


def children(process: subprocess.Popen) -> list[str]:
    task = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return task.read_text().split()


def test_a_command_cleans_up_after_ctrl_c():
    """In a process of its own, whose handling of Ctrl-C changes with it."""
    code = (
        "import os, signal\n"
        "from deepsynth_min.errors import exit_code\n"
        "stop = lambda arguments: os.kill(os.getpid(), signal.SIGINT)\n"
        "print(exit_code(stop, [], lambda: print('clean')))\n"
    )
    done = python("-c", code)
    assert (done.stdout, done.stderr) == ("clean\n130\n", "stopped\n")
