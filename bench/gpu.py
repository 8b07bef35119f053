"""A GPU's first minutes: is it right, how fast, how much memory; each result kept as it is known.

    python bench/gpu.py --minutes 8 --out DIR      # on a machine with a GPU and no network
    python bench/gpu.py --dry-run --out DIR        # all of it in miniature, on a CPU
    python bench/gpu.py --table DIR                # the table; a GPU's goes into bench/README.md

In: nothing but this repository and what it imports. Out: DIR/rows.jsonl (a line for each result,
one for each row's end), DIR/table.md, DIR/log.txt (what the rows printed), DIR/trace.json.gz.

The one idea: this process knows the plan and the time, and never uses the GPU. A worker
(gpu_rows.py) does one row after another; one that hangs, crashes or outlasts its time is killed, is
a row that says so, and the next row gets a new worker. Rows stand in order of worth, so that what
the time cuts off is the least. The same command goes on in DIR with the rows that are not done.
"""

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from common import commit
from gpu_table import table_of, write_readme

from deepsynth_min.errors import UserError, exit_code
from deepsynth_min.files import disk

HERE = Path(__file__).parent
OFFICIAL = "--preset deepseek-ocr --mode base --precision bf16 --warmup 3 --repeats 5"
TINY = "--preset tiny --warmup 1 --repeats 1 --answer 16 --batch-size 2"
LEAST = 5  # seconds that a row is worth starting for
START = 120  # seconds in which a worker has imported what it needs


@dataclass(frozen=True)
class Row:
    """name; what gpu_rows.py does and with which words; the most seconds of a GPU that it may take;
    bars: what a line's name ends with -> (sense, limit, where it holds)."""

    name: str
    work: str
    words: str
    most: float
    bars: tuple[tuple[str, tuple], ...] = ()


def plan(dry: bool) -> list[Row]:
    """Rows in order of worth."""
    size = lambda words: TINY if dry else f"{OFFICIAL} {words}"  # noqa: E731
    speed = lambda least: (("samples/s", (">=", least, "speed")),)  # noqa: E731
    memory = lambda most: (("peak memory", ("<=", most, "size")),)  # noqa: E731
    low = "--weights bf16 --optimizer adamw8bit --checkpoint-layers 12 --precision bf16"
    pages = "--preset tiny --pages 2" if dry else "--mode base --precision bf16 --pages 16"
    sixteen = size("--batch-size 16")
    ratio = (("x transformers with PEFT", (">=", 1.5, "size")),)
    share = (("samples/s", (">=", "0.6 LoRA", "size")),)
    return [
        Row("machine", "machine", "", 60),  # with CUDA's own start
        Row("golden, float32", "golden", "fp32", 60),
        Row("golden, bf16", "golden", "bf16", 45),
        Row("forms of the encoder", "encoder_forms", "", 90),
        Row("forms of the decoder", "decoder_forms", "", 45),
        Row("forms of the window", "window_forms", "", 120),
        Row("forms of the optimizer", "optimizer_forms", "", 60),
        Row("packed attention", "varlen", "", 30),
        Row("LoRA", "step", f"--tune lora {sixteen}", 90, speed(150)),
        Row("runs", "runs", "", 120),
        Row("copies for a checkpoint", "copies", "", 30),
        Row("LoRA and its peer", "peer", f"--tune lora {sixteen}", 90, ratio),
        Row("LoRA, cached", "step", f"--tune lora --cached {sixteen}", 60, speed(350)),
        Row("decoder", "step", f"--tune decoder {sixteen}", 60, speed(90)),
        Row("QLoRA", "step", f"--tune qlora {sixteen}", 90, share),
        Row("LoRA, memory", "step", f"--tune lora {size('--batch-size 8')}", 45, memory(14)),
        Row("QLoRA, memory", "step", f"--tune qlora {size('--batch-size 8')}", 45, memory(8)),
        Row("QLoRA, one sample", "step", f"--tune qlora {size('--batch-size 1')}", 45),
        Row(
            "decoder, memory",
            "step",
            f"--tune decoder {size('--batch-size 8')} {low}",
            60,
            memory(24),
        ),
        Row("encoder", "forms", pages, 90),
        Row("trace", "trace", f"--tune lora {sixteen}", 120),
        Row("compiled", "compiled", "", 120),
        Row("decoder and its peer", "peer", f"--tune decoder {sixteen}", 90, ratio),
        Row("LoRA, --compile", "step", f"--tune lora --compile {sixteen}", 240)
        if not dry
        else Row("LoRA, packed", "step", f"--tune lora --pack {sixteen}", 60),
    ]


class Worker:
    """A process that does rows, and the queue of what it tells. Raises UserError if it does not
    start: then no row would run, and none is to spend its time on that."""

    def __init__(self, given: argparse.Namespace, log, seconds: float = START):
        device = "cpu" if given.dry_run else "cuda"
        command = [sys.executable, HERE / "gpu_rows.py", "--device", device]
        command += ["--threads", str(given.threads)]
        path = filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH", "")))
        self.process = subprocess.Popen(
            [*command, *(["--dry-run"] if given.dry_run else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"},
            start_new_session=True,
        )
        self.told: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            ready = self.told.get(timeout=seconds)
        except queue.Empty:
            ready = ""
        if not ready:
            self.close()
            said = Path(log.name).read_text(encoding="utf-8").strip().splitlines()
            last = said[-1] if said else f"nothing in {seconds:.0f} s"
            raise UserError(f"the worker did not start: {last} ({log.name})")

    def _listen(self) -> None:
        for text in self.process.stdout:
            self.told.put(text)
        self.told.put("")  # it has ended

    def do(self, request: dict, seconds: float, keep) -> dict:
        """Has a row done; `keep` gets its lines as they come. How it ended."""
        until = time.monotonic() + seconds
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
            while True:
                text = self.told.get(timeout=max(0.01, until - time.monotonic()))
                if not text:
                    code = self.process.wait()
                    return {"end": "failed", "error": f"the process ended ({code})", "fresh": True}
                found = json.loads(text)
                if "end" in found:
                    return found
                keep(found)
        except queue.Empty:
            return {"end": "cut off", "error": f"after {seconds:.0f} s", "fresh": True}
        except BrokenPipeError:
            return {"end": "failed", "error": "the process is gone", "fresh": True}

    def close(self) -> None:
        """Ends it, and what it has started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Journal:
    """DIR/rows.jsonl: each entry is on the disk before the next thing is done."""

    def __init__(self, directory: Path, begun: dict):
        self.directory, self.path = directory, directory / "rows.jsonl"
        directory.mkdir(parents=True, exist_ok=True)
        self.entries = entries_of(directory) if self.path.exists() else []
        if self.entries and self.entries[0] != begun:
            raise UserError(
                f"--out {directory}: holds rows of another kind or commit; take another"
            )
        # Without a last line that a kill cut off: the next one would be written behind it.
        disk.write_text(self.path, "".join(json.dumps(e) + "\n" for e in self.entries))
        if not self.entries:
            self.add(begun)

    def add(self, entry: dict) -> None:
        self.entries.append(entry)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
        text = table_of(self.entries)
        disk.write_text(self.directory / "table.md", text)

    def is_done(self, row: Row) -> bool:
        ends = [e for e in self.entries if e.get("row") == row.name and "end" in e]
        return bool(ends) and ends[-1]["end"] == "done"


def entries_of(directory: Path) -> list[dict]:
    """What rows.jsonl holds; a last line that was being written when all was killed is left out."""
    try:
        lines = (directory / "rows.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"{directory}/rows.jsonl: {error.strerror}") from None
    return [json.loads(text) for text in lines if text.endswith("\n")]


def build(log) -> None:
    """The rasterizer, where it has not been built for this Python."""
    if find_spec("deepsynth_min._raster") is None:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        if subprocess.run(command, cwd=HERE.parent, stdout=log, stderr=log).returncode:
            raise UserError(f"the rasterizer could not be built: {log.name}")


def conduct(given: argparse.Namespace) -> None:
    """All rows, or as many as the time allows."""
    end = time.monotonic() + 60 * given.minutes
    out = Path(given.out)
    begun = {"dry_run": given.dry_run, "commit": commit()}
    journal, worker = Journal(out, begun), None
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        build(log)
        try:
            for row in plan(given.dry_run):
                if journal.is_done(row) or given.only not in row.name:
                    continue
                if (left := end - time.monotonic()) > LEAST:
                    worker = worker or Worker(given, log, min(START, left))
                began, left = time.monotonic(), end - time.monotonic()
                most = left if given.dry_run else min(row.most, left)
                if most < LEAST:
                    journal.add({"row": row.name, "end": "no time left"})
                    continue
                request = {"work": row.work, "words": row.words.split()}
                request["file"] = str(out / "trace.json.gz")
                keep = lambda found, row=row: journal.add({"row": row.name, **barred(found, row)})  # noqa: E731
                ended = worker.do(request, most, keep)
                taken = round(time.monotonic() - began, 1)
                journal.add({"row": row.name, **ended, "seconds": taken})
                print(
                    f"{row.name}: {ended['end']} {ended.get('error', '')} ({taken} s)", flush=True
                )
                if ended["fresh"]:
                    worker.close()
                    worker = None
        finally:
            if worker:
                worker.close()
    print(table_of(journal.entries))


def barred(found: dict, row: Row) -> dict:
    """The line with the bar of the plan."""
    for name, bar in row.bars:
        if found["what"].endswith(name):
            return found | {"bar": bar}
    return found


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--minutes", type=float, default=8, help="in all")
    add("--out", default="gpu-results", help="directory of the results")
    add("--dry-run", action="store_true", help="in miniature, on a CPU")
    add("--threads", type=int, default=0, help="of the CPU; 0: as many as cores")
    add("--only", default="", help="rows whose name contains this")
    add("--table", metavar="DIR", help="print the table of these results; a GPU's into README.md")
    return parser


def run(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    if given.table:
        entries = entries_of(Path(given.table))
        print(table_of(entries))
        if not entries[0]["dry_run"]:
            write_readme(HERE / "README.md", table_of(entries))
    elif not (given.dry_run or torch.cuda.is_available()):
        raise UserError("no GPU is here; --dry-run does all of it in miniature on a CPU")
    else:
        conduct(given)


if __name__ == "__main__":
    raise SystemExit(exit_code(run, None))
