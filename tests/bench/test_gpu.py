"""bench/gpu.py: all of it in miniature, what a time-out and a kill leave, how bars are judged."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu
import gpu_table
import pytest
import torch
from commands import python

from deepsynth_min.errors import UserError

GPU = Path(gpu.__file__)


def entries(out: Path) -> list[dict]:
    return gpu.entries_of(out)


def ends(out: Path) -> dict[str, str]:
    return {e["row"]: e["end"] for e in entries(out) if "end" in e}


def start(out: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, str(GPU), "--dry-run", "--threads", "1", "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# -- the whole -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dry_run_fills_every_row_of_the_table_and_meets_what_must_be_right(tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    process = start(tmp_path, "--minutes", "30")
    said, _ = process.communicate()
    assert process.returncode == 0
    found = ends(tmp_path)
    assert list(found) == [row.name for row in gpu.plan(True)]
    log = (tmp_path / "log.txt").read_text()[-3000:]
    # 8-bit moments over bf16 weights: the row says so where make_adamw refuses them.
    assert {n: e for n, e in found.items() if e != "done"}.keys() <= {"decoder, memory"}, log
    assert "missed" not in said and said.count("| met |") >= 20
    barred = [text for text in said.splitlines() if "miniature, no bar" in text]
    assert len(barred) >= 8  # LoRA, cached, decoder, QLoRA, two peers, memory of two
    assert (tmp_path / "table.md").read_text().strip() in said
    assert (tmp_path / "trace.json.gz").stat().st_size > 1000
    again = python(GPU, "--table", tmp_path)
    assert again.stdout.strip() == (tmp_path / "table.md").read_text().strip()


@pytest.mark.slow
def test_when_the_time_is_over_the_finished_rows_stay_and_the_others_say_so(tmp_path):
    process = start(tmp_path, "--minutes", "0.4")
    said, _ = process.communicate()
    assert process.returncode == 0
    found = ends(tmp_path)
    assert list(found) == [row.name for row in gpu.plan(True)]
    assert found["LoRA, packed"] == "no time left" and set(found.values()) > {"no time left"}
    assert "no time left" in said


@pytest.mark.slow
def test_a_kill_leaves_the_finished_rows_and_no_process_and_the_same_command_goes_on(tmp_path):
    process = start(tmp_path, "--only", "golden")
    while process.poll() is None and "golden base" not in text_of(tmp_path / "table.md"):
        time.sleep(0.05)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    until = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    before = entries(tmp_path)
    assert len(before) > 1 and "golden base" in text_of(tmp_path / "table.md")
    assert start(tmp_path, "--only", "golden").wait() == 0
    assert entries(tmp_path)[: len(before)] == before
    assert ends(tmp_path) == {"golden, float32": "done", "golden, bf16": "done"}


def test_a_row_that_a_kill_cut_off_is_left_out_and_the_next_one_is_whole(tmp_path):
    begun, row = {"dry_run": True}, {"row": "golden", "end": "done"}
    gpu.Journal(tmp_path, begun)
    (tmp_path / "rows.jsonl").write_text(json.dumps(begun) + '\n{"row": "gol')
    gpu.Journal(tmp_path, begun).add(row)
    assert entries(tmp_path) == [begun, row]


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(number) for number in listed]


# -- one row --------------------------------------------------------------------------------------


@pytest.fixture
def worker(tmp_path):
    given = gpu.parser().parse_args(["--dry-run", "--threads", "1"])
    with open(tmp_path / "log.txt", "w") as log:
        made = gpu.Worker(given, log)
        yield made
        made.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, end, said",
    (
        ("--preset tiny --precision fp32 --weights bf16", "refused", "--weights bf16"),
        ("--preset tiny --mode nonsense", "refused", "nonsense"),
        ("--preset tiny --batch-size -1", "failed", "RuntimeError"),
    ),
)
def test_a_row_that_fails_says_why_and_asks_for_a_new_process(worker, words, end, said):
    found = worker.do({"work": "step", "words": words.split()}, 300, print)
    assert found["end"] == end and said in found["error"] and found["fresh"]


@pytest.mark.slow
def test_a_row_that_outlasts_its_time_is_cut_off(worker):
    began = time.monotonic()
    found = worker.do({"work": "compiled", "words": []}, 1, print)
    assert found["end"] == "cut off" and time.monotonic() - began < 60


def test_a_worker_that_cannot_start_ends_it_all_with_the_reason(tmp_path, monkeypatch):
    (tmp_path / "freetype.py").write_text("raise ImportError('no freetype here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    given = gpu.parser().parse_args(["--dry-run"])
    with open(tmp_path / "log.txt", "w") as log:
        with pytest.raises(UserError, match="did not start: .*no freetype here .*log.txt"):
            gpu.Worker(given, log)


@pytest.mark.slow
def test_a_process_that_dies_is_a_row_that_says_so(worker):
    os.kill(worker.process.pid, signal.SIGKILL)
    found = worker.do({"work": "machine", "words": []}, 60, print)
    assert found["end"] == "failed" and "process" in found["error"]


# -- the table ------------------------------------------------------------------------------------

BEGUN = {"dry_run": False, "commit": "abc"}
MACHINE = {"device": "NVIDIA H200", "memory": 2**37, "commit": "abc", "versions": {"torch": "2.13"}}


def measured(row: str, value: float, bar: tuple = (), unit: str = "samples/s") -> dict:
    return {"row": row, "what": "it", "value": value, "unit": unit, "bar": bar, "note": ""}


def verdict(value: float, bar: tuple, device: str = "NVIDIA H200", dry: bool = False) -> str:
    others = [BEGUN, measured("LoRA", 100.0)]
    return gpu_table.judged(measured("x", value, bar), others, device, dry)[1]


@pytest.mark.parametrize(
    "value, bar, said",
    (
        (150, (">=", 150, "speed"), "met"),
        (149, (">=", 150, "speed"), "**missed**"),
        (14, ("<=", 14, "size"), "met"),
        (14.1, ("<=", 14, "size"), "**missed**"),
        (60, (">=", "0.6 LoRA", "speed"), "met"),
        (59, (">=", "0.6 LoRA", "speed"), "**missed**"),
        (59, (">=", "0.6 nothing", "speed"), "nothing was not measured"),
        (1, (), ""),
    ),
)
def test_a_figure_is_judged_by_its_bar(value, bar, said):
    assert verdict(value, bar) == said


def test_a_bar_of_speed_is_for_the_gpus_it_names_and_a_miniature_has_none():
    speed, right = (">=", 150, "speed"), ("<=", 1e-3, "right")
    assert verdict(1, speed, "NVIDIA A100") == "for H100 and H200"
    assert verdict(1, speed, "CPU", dry=True) == "miniature, no bar"
    assert verdict(1, right, "CPU", dry=True) == "**missed**"


def test_the_table_names_the_device_and_shows_a_row_that_failed_until_it_is_done_again():
    failed = {"row": "LoRA", "end": "failed", "error": "out of | memory"}
    begun = [BEGUN, {"row": "machine", "machine": MACHINE, **measured("machine", 1)}]
    first = gpu_table.table_of([*begun, failed])
    assert "**NVIDIA H200**, 128 GiB" in first and "failed: out of / memory" in first
    again = gpu_table.table_of([*begun, failed, measured("LoRA", 160, (">=", 150, "speed"))])
    assert "failed" not in again and "| 160.00 samples/s | >= 150 | met |" in again


def test_every_bar_of_the_issue_is_in_the_plan():
    bars = {row.name: row.bars[0][1][:2] for row in gpu.plan(False) if row.bars}
    assert bars == {
        "LoRA": (">=", 150),
        "LoRA, cached": (">=", 350),
        "decoder": (">=", 90),
        "QLoRA": (">=", "0.6 LoRA"),
        "LoRA and its peer": (">=", 1.5),
        "decoder and its peer": (">=", 1.5),
        "LoRA, memory": ("<=", 14),
        "QLoRA, memory": ("<=", 8),
        "decoder, memory": ("<=", 24),
    }


def test_the_table_is_put_between_its_marks_and_nothing_else_changes(tmp_path):
    path = tmp_path / "README.md"
    path.write_text((GPU.parent / "README.md").read_text())
    before = path.read_text()
    gpu_table.write_readme(path, "table one\n")
    gpu_table.write_readme(path, "table two\n")
    after = path.read_text()
    marks = f"{gpu_table.BEGIN}\n.*?{gpu_table.END}"
    assert re.sub(marks, "", before, flags=re.S) == re.sub(marks, "", after, flags=re.S)
    assert "table two" in after and "table one" not in after


def test_a_half_written_last_line_is_left_out(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(BEGUN) + '\n{"row": "LoR')
    assert entries(tmp_path) == [BEGUN]


def test_a_directory_with_another_commits_rows_is_refused(tmp_path, capsys):
    kept = json.dumps(BEGUN) + '\n{"row": "gol'
    (tmp_path / "rows.jsonl").write_text(kept)
    assert gpu.exit_code(gpu.run, ["--dry-run", "--out", str(tmp_path)]) == 2
    assert (tmp_path / "rows.jsonl").read_text() == kept
    error = capsys.readouterr().err
    assert str(tmp_path) in error and error.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_a_dry_run_must_be_asked_for(tmp_path, capsys):
    assert gpu.exit_code(gpu.run, ["--out", str(tmp_path)]) == 2
    assert "--dry-run" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_results_that_are_not_there_are_named(tmp_path, capsys):
    assert gpu.exit_code(gpu.run, ["--table", str(tmp_path / "none")]) == 2
    assert "none/rows.jsonl" in capsys.readouterr().err
