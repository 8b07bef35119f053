"""A process that is lost or hangs ends the others, and somebody says which one it was."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
from commands import two_processes, words

pytestmark = pytest.mark.slow  # waiting is what they are about


def options(out: Path, jsonl: Path, timeout: int) -> list[str]:
    return words(
        "--model tiny --tune lora --batch-size 2 --val-samples 2 --log-every 3 --save-every 2 "
        "--max-new-tokens 16 --max-steps 5000 --eval-every 0 --data {} --out {} --timeout {}",
        *(jsonl, out, timeout),
    )


def test_a_lost_rank_ends_the_others(tmp_path, jsonl):
    out = tmp_path / "lost"
    process, ranks = two_processes(out, options(out, jsonl, 20))
    os.kill(ranks[-1], signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and time.monotonic() - began < 40
    assert re.search(r"rank\s+: \d", errors) and "SIGKILL" in errors  # the launcher names the rank


def test_a_process_that_hangs_ends_the_others_and_is_named(tmp_path, jsonl):
    """It is stopped rather than killed: no connection breaks, and only --timeout can tell."""
    out = tmp_path / "hung"
    process, ranks = two_processes(out, options(out, jsonl, 5))
    hung = ranks[-1]
    environment = Path(f"/proc/{hung}/environ").read_bytes().split(b"\0")
    rank = next(int(entry[5:]) for entry in environment if entry.startswith(b"RANK="))
    os.kill(hung, signal.SIGSTOP)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if "lost another process" in line:
            break
    os.kill(hung, signal.SIGKILL)
    rest = "".join(seen) + process.communicate(timeout=60)[1]
    assert process.returncode != 0
    found = re.search(r"rank (\d) lost another process: (.*)", rest)
    assert int(found[1]) == 1 - rank and re.search(rf"Ranks? {rank}\b", found[2]), rest
