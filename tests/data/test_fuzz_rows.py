"""Damaged data files: each is refused in one line, or read as json and pyarrow read it."""

import io
import json
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import DEEP, JSONL, PARQUET, TABLES, mutate_bytes, mutate_value, outcome

from deepsynth_min.data.sources import open_files
from deepsynth_min.settings import DataSettings

ROWS = [
    {"text": "A document of some words.", "summary": "Words."},
    {"text": "ä € 🙂\nsecond line", "summary": "x", "instruction": "Say it. "},
    {"image": "a.png", "summary": "A picture."},
    {"images": ["a.png", "b/b.png"], "summary": "Two.", "instruction": None},
]


def solid(value) -> bool:
    """A text with something in it that can be written down."""
    if not isinstance(value, str) or not value.strip():
        return False
    return not any(0xD800 <= ord(c) < 0xE000 for c in value)


def meaning(values, folder) -> tuple | None:
    """(text, summary, instruction, real image paths) of a row, None if it may not be used: a
    second, plain reading of what the README says, for a set whose fields are named."""
    if not isinstance(values, dict) or not solid(values.get("summary")):
        return None
    instruction = values.get("instruction")
    if not (instruction is None or solid(instruction)):
        return None
    given = [n for n in ("image", "images") if values.get(n) is not None and values[n] != []]
    if len(given) > 1:
        return None
    text = values.get("text")
    if text is not None:
        return (text, values["summary"], instruction, []) if solid(text) else None
    if not given:
        return (None, values["summary"], instruction, []) if instruction else None
    value = values[given[0]]
    names = value if isinstance(value, list) else [value]
    found = [n if isinstance(n, bytes) and n else real_path(n, folder) for n in names]
    return None if not found or None in found else (None, values["summary"], instruction, found)


def real_path(name, folder) -> str | None:
    """Of a file in `folder`; None for anything else."""
    if not solid(name) or "\0" in name:
        return None
    path = os.path.realpath(os.path.join(folder, name))
    return (
        path if path.startswith(f"{os.path.realpath(folder)}/") and os.path.isfile(path) else None
    )


def shown(row) -> tuple:
    images = [p if isinstance(p, bytes) else os.path.realpath(p) for p in row.images]
    return row.text, row.summary, row.instruction, images


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data" / "b").mkdir(parents=True)
    for name in ("data/a.png", "data/b/b.png", "a.png"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path / "data"


def read_all(path):
    named = {f"{name}_field": name for name in ("text", "summary", "instruction")}
    rows = open_files(str(path), DataSettings(**named))
    return [rows[i] for i in reversed(range(len(rows)))][::-1]


def test_json_lines_are_refused_or_read_as_json_reads_them(folder):
    chance, path, accepted = random.Random(0), folder / "rows.jsonl", 0
    for _ in range(JSONL):
        rows = [dict(chance.choice(ROWS)) for _ in range(chance.randrange(1, 4))]
        lines = [json.dumps(row, ensure_ascii=chance.random() < 0.5).encode() for row in rows]
        at, kind = chance.randrange(len(lines)), chance.randrange(10)
        if kind < 4:
            lines[at] = mutate_bytes(lines[at], chance)
        elif kind < 9:
            lines[at] = json.dumps(mutate_value(rows[at], chance)).encode()
        else:
            lines[at] = chance.choice((DEEP.encode(), b"", b"\xef\xbb\xbf" + lines[at], b"null"))
        content = b"\n".join(lines)
        path.write_bytes(content)
        try:
            reference = [
                meaning(json.loads(line.decode("utf-8-sig")), folder)
                for line in content.split(b"\n")
                if line.strip()
            ]
        except (ValueError, RecursionError):
            reference = []
        got = outcome(lambda: read_all(path))
        accepted += got is not None
        expected = None if not reference or None in reference else reference
        assert (got and list(map(shown, got))) == expected, content
    assert JSONL * 0.1 < accepted < JSONL * 0.6


def parquet_file(chance: random.Random) -> bytes:
    n = chance.randrange(3, 40)
    table = pa.table(
        {
            "text": [f"text {i} " * 5 for i in range(n)],
            "summary": [f"s{i % 5}" for i in range(n)],
            "instruction": [None if i % 2 else "Do." for i in range(n)],
        }
    )
    out = io.BytesIO()
    pq.write_table(
        table,
        out,
        row_group_size=chance.choice((2, 7, 100)),
        compression=chance.choice(("none", "snappy", "zstd")),
        use_dictionary=chance.random() < 0.5,
    )
    return out.getvalue()


def test_parquet_files_are_refused_or_read_as_pyarrow_reads_them(folder):
    chance, path, accepted = random.Random(1), folder / "rows.parquet", 0
    for _ in range(PARQUET):
        good = parquet_file(chance)
        footer = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
        cut = chance.choice((0, footer))  # anywhere, or in what tells where everything is
        content = good[:cut] + mutate_bytes(good[cut:], chance)
        path.write_bytes(content)
        got = outcome(lambda: read_all(path))
        if got is not None:
            accepted += 1
            names = ["text", "summary", "instruction"]  # a column of another name may be damaged
            reference = (
                pq.ParquetFile(io.BytesIO(content)).read(names, use_threads=False).to_pylist()
            )
            assert list(map(shown, got)) == [meaning(values, folder) for values in reference]
    assert 0 < accepted < PARQUET * 0.8


def column(chance: random.Random, n: int):
    """n cells of some type or other, some of them odd."""
    kinds = (
        (pa.string(), lambda: chance.choice(("a", "b c", "", " ", None, "ä", "a.png", "x" * 2000))),
        (pa.large_string(), lambda: "large"),
        (pa.dictionary(pa.int8(), pa.string()), lambda: "d"),
        (pa.binary(), lambda: chance.choice((b"", b"\xff", None))),
        (pa.int64(), lambda: 7),
        (pa.list_(pa.string()), lambda: chance.choice(([], ["a.png"], [None], None))),
        (pa.null(), lambda: None),
        (pa.float16(), lambda: 1.0),
        (pa.bool_(), lambda: True),
        (pa.struct([("path", pa.string())]), lambda: chance.choice(({"path": "a.png"}, None))),
        (pa.timestamp("us"), lambda: 0),
        (pa.string(), lambda: "plain text"),
    )
    kind, cell = chance.choice(kinds[:1] * 12 + kinds[-1:] * 8 + kinds)
    return pa.array([cell() for _ in range(n)], kind)


def test_parquet_tables_of_any_columns_are_refused_or_read_as_they_are(folder):
    chance, path, accepted = random.Random(2), folder / "rows.parquet", 0
    for _ in range(TABLES):
        n = chance.randrange(0, 4)
        names = chance.sample(("text", "summary", "instruction", "image", "images", "x"), 4)
        names = chance.choice((["text", "summary"], names, ["image", "summary", "x"]))
        table = pa.table({name: column(chance, n) for name in names})
        pq.write_table(table, path)
        reference = []
        for values in table.to_pylist():
            texts = [values.get(name) for name in ("text", "summary", "instruction")]
            values |= {
                k: v["path"] for k, v in values.items() if isinstance(v, dict) and k[0] == "i"
            }
            fits = all(value is None or isinstance(value, str) for value in texts)
            reference.append(meaning(values, folder) if fits else None)
        got = outcome(lambda: read_all(path))
        accepted += got is not None
        if got is not None:
            assert list(map(shown, got)) == reference
    assert 0 < accepted < TABLES * 0.8
