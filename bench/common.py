"""What every bench shares: where it ran, medians, and the last line as one JSON document."""

import json
import os
import platform
import statistics
import subprocess
from importlib.metadata import PackageNotFoundError, version


def commit() -> str:
    """Short hash of the checkout, with "+changes" if files differ from it; "unknown" outside."""
    here = os.path.dirname(os.path.abspath(__file__))

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True,
                              check=True).stdout.strip()  # fmt: skip

    try:
        return git("rev-parse", "--short", "HEAD") + ("+changes" if git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def processor() -> str:
    """The CPU's name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def versions(*packages: str) -> dict[str, str]:
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


def finish(result: dict) -> None:
    """Prints the result as the last line."""
    print(json.dumps(result))
