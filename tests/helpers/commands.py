"""Command lines, and Python and torchrun in new processes, as users start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

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
    """Runs a script, or `-m` and a module, in several processes; tests/helpers can be imported."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    return python(*LAUNCHER, processes, *arguments, env=environment)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]
