"""Three thousand damaged or odd files of every form: no traceback, no row lost in silence."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import mutate_bytes, mutate_value, outcome

from deepsynth_min.data.sources import open_files
from deepsynth_min.settings import DataSettings

pytestmark = pytest.mark.slow
FILES = 3000
SKIP = DataSettings(on_bad_row="skip", max_bad=1.0)
ROWS = [
    {"text": "A document of some words.", "summary": "Words."},
    {"text": 'ä € 🙂 "quoted", ;\nsecond line', "summary": "[x, {y}]", "instruction": "Say it. "},
    {"image": "a.png", "summary": "A picture."},
    {"images": ["a.png", "b/b.png"], "summary": "Two.", "instruction": None},
    {"text": "", "summary": "no page"},
    {"instruction": "Two and two?", "summary": "Four."},
]
ANSWER = {"role": "assistant", "content": "an answer"}
PARTS = [{"type": "text", "text": "Hm?"}]
CHATS = [
    {"messages": [{"role": "user", "content": "<image>\nRead."}, ANSWER], "images": ["a.png"]},
    {"messages": [{"role": "user", "content": PARTS}, ANSWER]},
]
PACK = {"": lambda data: data, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data" / "b").mkdir(parents=True)
    for name in ("data/a.png", "data/b/b.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "data"


def table(rows: list[dict], delimiter: str, chance: random.Random) -> str:
    out, names = io.StringIO(), ["text", "summary", "instruction", "image"]
    end = chance.choice(("\n", "\r\n"))
    writer = csv.writer(out, delimiter=delimiter, lineterminator=end)
    writer.writerow(names)
    for row in rows:
        cells = [row.get(name) or "" for name in names]
        writer.writerow(cells if chance.random() < 0.9 else cells[: chance.randrange(1, 5)])
    return out.getvalue()


def parquet(rows: list[dict]) -> bytes:
    names = ("text", "summary", "instruction", "image")
    columns = {n: pa.array([row.get(n) for row in rows], pa.string()) for n in names}
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out, row_group_size=2)
    return out.getvalue()


def made(chance: random.Random) -> tuple[str, bytes, int]:
    """(name, content, rows in it) of a file whose form is whole and some of whose rows are odd."""
    rows = [dict(chance.choice(ROWS if chance.random() < 0.8 else CHATS)) for _ in range(
        chance.randrange(1, 6))]  # fmt: skip
    kind = chance.choice((".jsonl", ".json", ".csv", ".tsv", ".parquet", "data.json"))
    if kind in (".jsonl", ".json", "data.json"):
        rows = [mutate_value(row, chance) if chance.random() < 0.3 else row for row in rows]
        given = [json.dumps(row, ensure_ascii=True) for row in rows]
    if kind == ".jsonl":
        blank = [chance.choice(("\n", "\r\n", "\n\n")) for _ in given]
        content = "".join(line + end for line, end in zip(given, blank)).encode()
    elif kind == ".json":
        content = ("[" + chance.choice((",", ",\n ")).join(given) + "]").encode()
    elif kind == "data.json":
        content = ('{"version": 1, "data": [' + ",".join(given) + "]}").encode()
    elif kind == ".parquet":
        return "a.parquet", parquet(rows), len(rows)
    else:
        content = table(rows, "\t" if kind == ".tsv" else ",", chance).encode()
    packed = chance.choice(("", "", "", ".gz", ".bz2", ".xz"))
    return f"a{kind[kind.index('.') :]}{packed}", PACK[packed](content), len(rows)


def test_rows_read_and_rows_named_are_the_rows_there(folder):
    chance, read, named, refused = random.Random(5), 0, 0, 0
    for n in range(FILES // 2):
        name, content, count = made(chance)
        path = folder / f"{n}{name}"
        path.write_bytes(content)
        rows = outcome(lambda path=path: open_files(str(path), SKIP))
        path.unlink()
        if rows is None:  # none of them can be used
            refused += 1
            continue
        assert len(rows) + len(rows.faults) == count, (name, content)
        assert all(fault.reason and fault.where.startswith(str(path)) for fault in rows.faults)
        read, named = read + len(rows), named + len(rows.faults)
    assert read > FILES / 2 and named > FILES / 8 and refused < FILES / 5


def test_damaged_files_of_any_form_are_refused_or_read_as_far_as_they_go(folder):
    chance, whole = random.Random(6), 0
    for n in range(FILES // 2):
        name, content, _ = made(chance)
        path = folder / f"{n}{name}"
        path.write_bytes(mutate_bytes(content, chance))
        rows = outcome(lambda path=path: open_files(str(path), SKIP))
        if rows is not None:
            whole += 1
            again = outcome(lambda rows=rows: [rows[i] for i in range(len(rows))])
            assert again is not None and len(again) == len(rows), (name, path.read_bytes())
        path.unlink()
    assert FILES / 15 < whole < FILES / 2
