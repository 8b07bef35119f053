"""What every bench shares: sizes, where it ran, medians, and the last line as one JSON document."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import torch

from deepsynth_min.model import PRESETS
from deepsynth_min.model.shape.config import DecoderConfig

# A decoder between the presets, for a CPU: large enough that products count, with tiny's encoder.
MIDDLE = DecoderConfig(
    vocab_size=4096,
    hidden_size=512,
    intermediate_size=1376,
    moe_intermediate_size=256,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=8,
    n_routed_experts=32,
    n_shared_experts=2,
    num_experts_per_tok=6,
)
SIZES = {**PRESETS, "middle": replace(PRESETS["tiny"], decoder=MIDDLE)}


def commit() -> str:
    """Short hash of the checkout, with "+changes" if files differ from it; of a copy without git
    what COMMIT says in the environment, or "unknown"."""
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", here, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", "unknown")


def processor() -> str:
    """The CPU's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
    """Of python and of packages, for the JSON line."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def environment(*packages: str) -> dict:
    """Commit, hardware and versions, for the JSON line."""
    return {
        "commit": commit(),
        "cpu": processor(),
        "cores": os.cpu_count(),
        "versions": versions(*packages),
    }


def table(rows: list[tuple], header: tuple) -> str:
    """Columns aligned for people: the first to the left, the others to the right."""
    cells = [tuple(str(cell) for cell in row) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return "\n".join(
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths)))
        for row in cells
    )


def median(values: list[float]) -> float:
    return statistics.median(values)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    work: dict[str, Callable[[int], None]], repeats: int, device: torch.device, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of each piece of work, taken in turn, so that drift of the machine falls on all."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for i in range(-warmup, repeats):
        for name in list(work) if i % 2 else reversed(work):
            wait(device)
            began = time.perf_counter()
            work[name](i % 4)
            wait(device)
            if i >= 0:
                times[name].append(time.perf_counter() - began)
    return times


def product_rate(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[int], None]:
    """A square matrix product, for `interleaved`: the machine's rate is 2 side^3 over its time."""
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    out = torch.empty_like(a)
    return lambda i: torch.mm(a, b, out=out)


def resident(which: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    with open("/proc/self/status", encoding="utf-8") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def child(row: str, *words: str) -> dict:
    """One row of the running bench, from a process of its own, so that its peak memory is its own:
    calls the script as it was called, with `--row` and more; returns its last line."""
    command = [sys.executable, *sys.argv, "--row", row, *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def finish(result: dict) -> None:
    """Prints the result as the last line."""
    print(json.dumps(result))
