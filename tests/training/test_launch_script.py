"""clusters/launch.sh: what it makes of a command's end and of status.json.

Real runs under it are in test_launchers.py.
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import deepsynth_min

SCRIPT = Path(deepsynth_min.__file__).parent / "training" / "clusters" / "launch.sh"


def write_status(run: Path, status: str, step: int) -> None:
    """As runs/storage/status.py writes it."""
    run.mkdir(exist_ok=True)
    (run / "status.json").write_text(json.dumps({"status": status, "step": step}, indent=1) + "\n")


def command(run: Path, status: str, saved: str, code: int) -> list[str]:
    """In the place of torchrun: leaves what a run leaves, and ends."""
    write_status(run.with_name("new"), status, 9)
    text = f"cp {run}/../new/status.json {run}/; " if status else ""
    text += f"echo {saved} >{run}/last; " if saved else ""
    return ["bash", "-c", f"{text}exit {code}"]


@pytest.mark.parametrize(
    ("status", "saved", "code", "ends_with"),
    [
        ("done", "step-9", 0, 0),
        ("stopped", "step-9", 1, 75),  # torchrun got the signal
        ("stopped", "step-9", 0, 75),  # a process did
        ("running", "step-9", 137, 75),  # killed after a save
        ("running", "", 137, 137),  # killed before one: it would be again
        ("failed", "", 1, 1),
        ("", "", 1, 1),  # a mistake, found before the first step; the status is of the time before
        ("", "", 2, 2),
    ],
)
def test_the_exit_code_says_whether_the_run_would_go_on(tmp_path, status, saved, code, ends_with):
    run = tmp_path / "run"
    write_status(run, "stopped", 5)
    (run / "last").write_text("step-5\n")
    given = ["bash", SCRIPT, run, *command(run, status, saved, code)]
    environment = os.environ | {"AGAIN": f"touch {tmp_path / 'again'}"}
    assert subprocess.run(given, env=environment).returncode == ends_with
    assert (tmp_path / "again").exists() == (ends_with == 75)


@pytest.mark.parametrize("number", ["TERM", "INT", "HUP", "USR1"])
def test_each_signal_is_passed_on_as_sigusr1_and_waited_for(tmp_path, number):
    """Before the first step nothing is saved, and status.json says nothing: started again it goes
    on."""
    text = "trap 'sleep 0.5; echo saved; exit 1' USR1; echo ready; while :; do sleep 0.05; done"
    given = ["bash", SCRIPT, tmp_path / "run", "bash", "-c", text]
    heard = lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)  # noqa: E731, under nohup too
    process = subprocess.Popen(given, stdout=subprocess.PIPE, text=True, preexec_fn=heard)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{number}"))
    began = time.monotonic()
    assert process.communicate(timeout=20)[0] == "saved\n" and process.returncode == 75
    assert time.monotonic() - began > 0.4


def test_torchrun_is_told_to_wait_and_to_take_the_signal(tmp_path):
    """By the variables that torchrun's own parser reads."""
    code = (
        "from torch.distributed.run import parse_args as p; a = p(['x']); "
        "print(a.shutdown_timeout, a.signals_to_handle); raise SystemExit(3)"
    )
    given = ["bash", SCRIPT, tmp_path / "run", "python", "-c", code]
    done = subprocess.run(given, capture_output=True, text=True)
    assert done.stdout.split() == ["3600", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"]
    assert done.returncode == 3
