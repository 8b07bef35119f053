"""Command lines, and Python and torchrun in new processes, as users start them."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from run_files import lines

TRAIN = ["-m", "deepsynth_min.train"]
LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def words(text: str, *values) -> list[str]:
    """The words of a command line; each {} is one of `values`, whatever spaces are in it."""
    given = iter(values)
    return [str(next(given)) if word == "{}" else word for word in text.split()]


def python(*arguments, **options) -> subprocess.CompletedProcess:
    """Runs Python and captures what it prints; `options` are those of subprocess.run."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


def torchrun(processes: int, *arguments) -> subprocess.CompletedProcess:
    """Runs a script, or `-m` and a module, in several processes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return python(*LAUNCHER, processes, *arguments, env=environment)


def ranks(processes: int, *arguments) -> str:
    """The same without the launcher, which takes seconds to start; tests/helpers can be imported.

    The variables are those that torchrun sets. Returns what the first process has printed. All must
    end with exit code 0; else what the first one to fail has printed is the error.
    """
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    common = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    command, running, logs = [sys.executable, *map(str, arguments)], [], []
    for rank in range(processes):
        environment = os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        logs.append(tempfile.TemporaryFile("w+"))
        running.append(subprocess.Popen(command, env=environment, stdout=logs[-1], stderr=logs[-1]))
    try:
        while any(process.poll() is None for process in running):
            if any(process.poll() for process in running):
                break  # the others would wait for it
            time.sleep(0.02)
        for log in logs:
            log.seek(0)
        printed = [log.read() for log in logs]
        for process, text in zip(running, printed):
            assert not process.poll(), text
        return printed[0]
    finally:
        for process in running:
            process.kill()
            process.wait()


def ranks_of(launcher: subprocess.Popen) -> list[int]:
    """The process numbers of what torchrun has started."""
    found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def two_processes(out: Path, options: list[str]) -> tuple[subprocess.Popen, list[int]]:
    """(a launcher whose two ranks have begun to train into `out`, their process numbers)."""
    command = [sys.executable, *LAUNCHER, "2", *TRAIN, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (out / "metrics.jsonl").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    return process, ranks_of(process)


def start(*arguments, **options) -> subprocess.Popen:
    """A process group of its own, as a terminal makes one of each command line; `options` are those
    of Popen."""
    command, pipe = [sys.executable, *map(str, arguments)], subprocess.PIPE
    return subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, **options
    )


def begun(process: subprocess.Popen, out: Path) -> None:
    """Waits until some steps have been made."""
    while not (out / "metrics.jsonl").exists() or len(lines(out, "train")) < 3:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
