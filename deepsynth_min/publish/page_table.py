"""Rows -> a Parquet file of their pages, for other trainers.

In: rows, and a function that draws one. Out: FILE.parquet with the columns text, summary,
instruction (if the data has any) and images, a list of PNG files {bytes, path} in the hub's image
format; `datasets` reads it as a list of images, and --data reads it again. A table of more than
`file_bytes` is divided: FILE-00000-of-00003.parquet, ...

The one idea: rows are drawn in parts of PART_ROWS, each written whole or not at all into
FILE.parquet.parts beside a note of what they are made of. A part depends on its rows alone, so
what was killed goes on with the parts it has, on any number of cores, to the same bytes; joining
them is the last thing done, and they are removed when the joined files are there. Memory holds two
parts, however many rows there are; the disk holds the table twice until the parts are removed.
"""

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..data.row import Row, RowError
from ..errors import UserError
from ..files.disk import WriteError, flush, write_text
from ..files.index import Fault
from ..pages.png import png

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError:  # the extra `parquet`; said when it is needed
    pa = pq = None

PART_ROWS = 100  # of a part, and of a row group of the table
PLAN = "plan.json"


@dataclass
class Written:
    """What became of the rows."""

    files: list[Path] = field(default_factory=list)
    rows: int = 0
    pages: int = 0
    missing: int = 0  # characters drawn as a box, or without the shaping that their script needs
    left_out: list[Fault] = field(default_factory=list)


@dataclass(frozen=True)
class PageTable:
    """Where rows are written to, and how they are drawn.

    draw: Row -> (pages uint8 [n, C, h, w], characters not drawn as they should); raises RowError,
    and `skips` says whether such a row is left out. Both are called in threads.
    """

    to: Path
    draw: Callable[[Row], tuple[np.ndarray, int]]
    skips: Callable[[RowError], bool]
    instructions: bool = False  # whether there is a column for them
    file_bytes: int = 500 * 10**6

    @property
    def parts(self) -> Path:
        return self.to.with_name(self.to.name + ".parts")

    def write(
        self, rows: Sequence[Row], plan: dict, workers: int, force: bool = False, max_bad: float = 1
    ) -> Written:
        """plan: all that decides what the pages look like. max_bad: the share of rows that may be
        left out. Raises UserError, also if there is such a file and not `force`."""
        if pa is None:
            raise UserError("--to: needs pyarrow: pip install 'deepsynth-min[parquet]'")
        try:
            self._begin(json.dumps(plan, sort_keys=True, indent=1), force)
            done = self._draw_parts(rows, workers, max_bad)
            if not done.rows:
                raise UserError(f"--to {self.to}: no row can be used ({len(rows):,} left out)")
            done.files = self._join(-(-len(rows) // PART_ROWS))
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise WriteError(f"{self.to}: could not be written: {reason}") from None
        return done

    def _begin(self, plan: str, force: bool) -> None:
        """Makes the folder of parts, or finds one that the same plan has made."""
        note, there = self.parts / PLAN, self._files()
        if note.is_file() and note.read_text(encoding="utf-8") == plan:
            return  # goes on; files there are those of a joining that was killed
        if self.parts.exists() and not force:
            raise UserError(f"{self.parts}: parts of other rows or settings; --force removes them")
        if there and not force:
            raise UserError(f"{there[0]}: exists; --force overwrites")
        if not self.parts.is_dir() and self.parts.exists():
            raise UserError(f"{self.parts}: is no folder")
        shutil.rmtree(self.parts, ignore_errors=True)
        self.parts.mkdir(parents=True)
        write_text(note, plan)

    def _files(self) -> list[Path]:
        """Those that are there under a name that a table of this name can have."""
        numbered = sorted(self.to.parent.glob(f"{self.to.stem}-[0-9]*-of-[0-9]*.parquet"))
        return [*([self.to] if os.path.lexists(self.to) else []), *numbered]

    # -- parts ------------------------------------------------------------------------------------

    def _part(self, number: int) -> Path:
        return self.parts / f"part-{number:07}.parquet"

    def _draw_parts(self, rows: Sequence[Row], workers: int, max_bad: float) -> Written:
        done, total = Written(), len(rows)
        waiting: deque[tuple[int, list[Future]]] = deque()
        bar = tqdm(total=total, desc="drawing", unit="row")
        pool = ThreadPoolExecutor(workers)

        def count(number: int) -> None:
            _add_part(done, self._part(number))
            if len(done.left_out) > max_bad * total:
                first = done.left_out[0]
                raise UserError(
                    f"{first.where}: {first.reason}; in all {len(done.left_out):,} of {total:,} "
                    f"rows cannot be used, more than --max-bad {max_bad:g}"
                )

        def finish() -> None:
            number, futures = waiting.popleft()
            entries = []
            for future in futures:
                entries.append(future.result())
                bar.update()
            self._write_part(number, entries)
            count(number)

        try:
            for number, start in enumerate(range(0, total, PART_ROWS)):
                stop = min(total, start + PART_ROWS)
                if self._part(number).is_file():
                    bar.update(stop - start)
                    count(number)
                    continue
                places = range(start, stop)
                waiting.append((number, [pool.submit(self._entry, rows, i) for i in places]))
                if len(waiting) > 1:  # one is drawn while the one before it is written
                    finish()
            while waiting:
                finish()
        finally:
            pool.shutdown(cancel_futures=True)
            bar.close()
        return done

    def _entry(self, rows: Sequence[Row], i: int) -> tuple[dict, int] | Fault:
        """Row i of the table and its characters not drawn; or why it is left out."""
        row = rows[i]
        try:
            pages, missing = self.draw(row)
        except RowError as error:
            if not self.skips(error):
                raise
            return Fault(error.where, error.reason, error.kind)
        images = [
            {"bytes": png(page), "path": f"{i:08}-{number:04}.png"}
            for number, page in enumerate(pages)
        ]
        entry = {"text": row.text, "summary": row.summary, "images": images}
        return entry | ({"instruction": row.instruction} if self.instructions else {}), missing

    def _write_part(self, number: int, entries: list[tuple[dict, int] | Fault]) -> None:
        drawn = [entry for entry in entries if not isinstance(entry, Fault)]
        said = {
            "left_out": [list(entry) for entry in entries if isinstance(entry, Fault)],
            "missing": sum(missing for _, missing in drawn),
            "pages": sum(len(entry["images"]) for entry, _ in drawn),
        }
        schema = _schema(self.instructions).with_metadata({"part": json.dumps(said)})
        table = pa.Table.from_pylist([entry for entry, _ in drawn], schema)
        partial = self._part(number).with_suffix(".partial")
        with _writer(partial, schema) as writer:
            writer.write_table(table)
        flush(partial)
        os.replace(partial, self._part(number))

    # -- the table --------------------------------------------------------------------------------

    def _join(self, parts: int) -> list[Path]:
        """The parts, one after another, in as few files as may be."""
        groups: list[list[Path]] = []
        size = 0
        for part in map(self._part, range(parts)):
            bytes_ = part.stat().st_size
            if not groups or size + bytes_ > self.file_bytes:
                groups.append([])
                size = 0
            groups[-1].append(part)
            size += bytes_
        names = [self.to]
        if len(groups) > 1:
            stem, n = self.to.stem, len(groups)
            names = [self.to.with_name(f"{stem}-{k:05}-of-{n:05}.parquet") for k in range(n)]
        for name, group in zip(names, groups):
            partial = self.parts / f"{name.name}.partial"
            schema = _schema(self.instructions).with_metadata(_hub_metadata(self.instructions))
            with _writer(partial, schema) as writer:
                for part in group:
                    table = pq.read_table(part)
                    if len(table):
                        writer.write_table(table.replace_schema_metadata(schema.metadata))
            flush(partial)
            os.replace(partial, name)
        for old in set(self._files()) - set(names):  # of before, with force
            old.unlink()
        flush(self.to.parent)
        shutil.rmtree(self.parts)
        return names


def _add_part(done: Written, part: Path) -> None:
    """Counts a part that is on the disk."""
    metadata = pq.read_metadata(part)
    said = json.loads(metadata.metadata[b"part"])
    done.rows += metadata.num_rows
    done.pages += said["pages"]
    done.missing += said["missing"]
    done.left_out += [Fault(*fault) for fault in said["left_out"]]


def _schema(instructions: bool):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    asked = [("instruction", pa.string())] if instructions else []
    texts = [("text", pa.string()), ("summary", pa.string()), *asked]
    return pa.schema([*texts, ("images", pa.list_(image))])


def _hub_metadata(instructions: bool) -> dict[str, str]:
    """What `datasets` reads the columns' types from; every version knows Sequence."""
    names = ["text", "summary"] + ["instruction"] * instructions
    features: dict[str, object] = {name: {"dtype": "string", "_type": "Value"} for name in names}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "Sequence"}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def _writer(path: Path, schema):  # noqa: ANN001
    """Texts are compressed; PNG files are already, and statistics of their bytes help nobody."""
    texts = [name for name in schema.names if name != "images"]
    compression = {name: "zstd" for name in texts}
    compression |= {f"images.list.element.{name}": "none" for name in ("bytes", "path")}
    return pq.ParquetWriter(
        path, schema, compression=compression, use_dictionary=False, write_statistics=texts
    )
