"""Data at scale: time to the first batch, resident memory and rows per second, by number of rows.

    python bench/data_scale.py              # 100,000 and 10,000,000 rows (1.3 GB, removed again)
    python bench/data_scale.py --rows 1000 100000 --format parquet   # in row groups of 1,000
    python bench/data_scale.py --rows 4000 40000 --format images     # PNG of 50 kB in Parquet: 2 GB

Makes a data file, then starts a new process on it twice: without an index, which checks every row
and writes one, and with it. Each process builds the trainer's own loader and draws batches.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from common import environment, finish, table

BATCHES = 200
GROUP = 1000  # rows of a Parquet row group
ALONE = 2000  # rows read without drawing them


def row(i: int) -> dict[str, str]:
    text = f"Report {i}: the pump at station {i * 7919 % 99991} was repaired in {i % 48} hours."
    return {"text": text, "summary": f"Pump repaired in {i % 48} hours."}


def make(path: Path, rows: int) -> None:
    """Rows of about 130 bytes, all different."""
    if path.suffix == ".jsonl":
        with open(path, "w", encoding="utf-8") as out:
            out.writelines(json.dumps(row(i)) + "\n" for i in range(rows))
        return
    import pyarrow
    import pyarrow.parquet

    if "images" in path.name:
        make_images(path, rows)
        return
    schema = pyarrow.schema([("text", pyarrow.string()), ("summary", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as out:
        for start in range(0, rows, GROUP):
            group = [row(i) for i in range(start, min(start + GROUP, rows))]
            out.write_table(pyarrow.Table.from_pylist(group, schema))


def make_images(path: Path, rows: int) -> None:
    """Rows of an image column and a text, in groups of 100; the images are noise, all different."""
    import pyarrow
    import pyarrow.parquet

    from deepsynth_min.pages.png import png

    noise = np.random.default_rng(0)
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", image), ("text", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema, compression="none") as out:
        for start in range(0, rows, 100):
            group = [
                {
                    "image": {"bytes": png(noise.integers(0, 256, (224, 224), np.uint8))},
                    "text": row(i)["summary"],
                }
                for i in range(start, min(start + 100, rows))
            ]
            out.write_table(pyarrow.Table.from_pylist(group, schema))


def read(rows, count: int) -> float:
    """Rows per second, read alone, in the order that training draws them in."""
    began = time.perf_counter()
    for i in range(min(count, len(rows))):
        rows[i]
    return min(count, len(rows)) / (time.perf_counter() - began)


def resident() -> int:
    """Bytes of this process's own memory (Linux: without pages of mapped files, which the system
    may drop at any time; elsewhere the largest it ever had)."""
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def start(path: str) -> dict:
    """In a new process: open, draw the first batch, then more."""
    from deepsynth_min.data import Loader, SampleBuilder
    from deepsynth_min.data.sources import open_rows
    from deepsynth_min.data.tokenizer import load_tokenizer
    from deepsynth_min.model import PRESETS
    from deepsynth_min.options import change
    from deepsynth_min.settings import Settings

    settings = change(Settings(), data=path)
    builder = SampleBuilder(settings, PRESETS["tiny"], load_tokenizer())
    before, began = resident(), time.perf_counter()
    train, held_out = open_rows(settings.data, seed=0)
    opened = time.perf_counter() - began
    loader = Loader(train, builder, settings)
    next(loader)
    first = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(BATCHES):
        next(loader)
    rate = BATCHES * settings.optim.batch_size / (time.perf_counter() - began)
    loader.close()
    alone = read(train, ALONE)
    return {
        "rows": len(train) + len(held_out),
        "open_s": opened,
        "first_batch_s": first,
        "rows_per_s": rate,
        "read_per_s": alone,
        "grown_bytes": resident() - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 10_000_000])
    parser.add_argument("--format", choices=("jsonl", "parquet", "images"), default="jsonl")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start:
        print(json.dumps(start(given.start)))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "XDG_CACHE_HOME": folder}
        for rows in given.rows:
            kind = {"images": "images.parquet"}.get(given.format, given.format)
            path = Path(folder) / f"{rows}.{kind}"
            make(path, rows)
            for index in ("made", "present"):
                command = [sys.executable, __file__, "--start", str(path)]
                out = subprocess.run(
                    command, env=environ, capture_output=True, text=True, check=True
                )
                found = json.loads(out.stdout.splitlines()[-1])
                results.append(
                    {"index": index, "file_bytes": path.stat().st_size, **found, "asked": rows}
                )
            path.unlink()
    print(
        table(
            [
                (
                    f"{r['asked']:,}",
                    r["index"],
                    f"{r['first_batch_s']:.2f} s",
                    f"{r['grown_bytes'] / 2**20:.0f} MiB",
                    f"{r['rows_per_s']:.0f}",
                    f"{r['read_per_s']:,.0f}",
                )
                for r in results
            ],
            (
                "rows",
                "index",
                "first batch after",
                "memory grown",
                "rows/s drawn and tokenised",
                "rows/s read alone",
            ),
        )
    )
    finish(
        {
            "bench": "data_scale",
            "format": given.format,
            "results": results,
            **environment("torch", "numpy", "pyarrow"),
        }
    )


if __name__ == "__main__":
    main()
