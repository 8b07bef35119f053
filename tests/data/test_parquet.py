"""Parquet files: the same rows and the same errors as JSON lines, whatever way they are stored."""

import io
import json
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deepsynth_min.corpus import documents as corpus
from deepsynth_min.data.formats import parquet
from deepsynth_min.data.sources import open_files, open_rows
from deepsynth_min.errors import UserError
from deepsynth_min.files import index
from deepsynth_min.pages.images import open_images
from deepsynth_min.settings import DataSettings

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(path, columns: dict, group: int = 3, **options) -> str:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, row_group_size=group, **options)
    return str(path)


def png(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(out, "PNG")
    return out.getvalue()


def rows_of(path, **settings) -> list:
    rows = open_files(str(path), DataSettings(**settings))
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"compression": "zstd"},
        {"data_page_version": "2.0", "write_page_checksum": True},
    ],
)
@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_rows_are_those_of_the_same_data_in_json_lines(tmp_path, options, kind):
    documents = corpus.documents("train")[:40]
    values = {
        "doc": [d.text for d in documents],
        "summary": [d.summary for d in documents],
        "instruction": [f"Do {i}." if i % 3 else None for i in range(40)],
    }
    types = {
        "string": pa.string(),
        "large_string": pa.large_string(),
        "string_view": pa.string_view(),
        "dictionary": pa.dictionary(pa.int32(), pa.string()),
    }
    columns = {name: pa.array(v).cast(types[kind]) for name, v in values.items()}
    write(tmp_path / "a.parquet", pa.table(columns | {"more": list(range(40))}), 7, **options)
    lines = [json.dumps(dict(zip(values, row))) for row in zip(*values.values())]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    names = DataSettings(text_field="doc")
    ours, reference = (
        open_files(str(tmp_path / f"a.{end}"), names) for end in ("parquet", "jsonl")
    )
    assert len(ours) == len(reference) == 40
    for i in np.random.default_rng(1).permutation(40):
        a, b = ours[i], reference[i]
        assert (a.text, a.summary, a.instruction) == (b.text, b.summary, b.instruction)
        assert a.where == f"{tmp_path / 'a.parquet'}:row {i + 1}"
        assert ours.size(i) == len(a.text.encode()) + len(a.summary.encode())


def test_a_folder_counts_through_its_files_and_a_file_of_no_rows_adds_none(tmp_path):
    for name, count in (("a", 4), ("b", 0), ("c", 3)):
        texts = pa.array([f"{name}{i}" for i in range(count)], pa.string())
        write(tmp_path / f"{name}.parquet", {"text": texts, "summary": texts})
    rows = open_files(str(tmp_path), DataSettings())
    assert [rows[i].text for i in range(7)] == ["a0", "a1", "a2", "a3", "c0", "c1", "c2"]
    assert rows[4].where.endswith("c.parquet:row 1")
    with pytest.raises(UserError, match="b.parquet: no rows"):
        open_files(str(tmp_path / "b.parquet"), DataSettings())


def test_images_are_bytes_the_hubs_struct_or_paths_one_or_several(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    red, blue, n = png(), png("blue"), 3
    answers = ["s"] * n
    cases = {
        "bytes": (pa.array([red, blue, red]), [(red,), (blue,), (red,)]),
        "large": (pa.array([red, blue, red], pa.large_binary()), [(red,), (blue,), (red,)]),
        "hub": (
            pa.array(
                [
                    {"bytes": red, "path": "../x.png"},
                    {"bytes": blue, "path": None},
                    {"bytes": None, "path": "a.png"},
                ],
                STRUCT,
            ),
            [(red,), (blue,), (tmp_path / "a.png",)],
        ),
        "path": (pa.array(["a.png"] * n), [(tmp_path / "a.png",)] * n),
        "list": (pa.array([[red], [blue, red], [red]]), [(red,), (blue, red), (red,)]),
        "hub list": (
            pa.array([[{"bytes": red, "path": None}]] * n, pa.list_(STRUCT)),
            [(red,)] * n,
        ),
    }
    for name, (column, expected) in cases.items():
        for field in ("image", "images"):
            write(tmp_path / "i.parquet", {field: column, "summary": answers}, 2)
            rows = open_files(str(tmp_path / "i.parquet"), DataSettings())
            assert [rows[i].images for i in range(n)] == expected, name
    assert next(open_images(red, "f:row 1")).getpixel((0, 0)) == (255, 0, 0)


def test_rows_with_a_text_and_rows_with_an_image_stand_in_one_file(tmp_path):
    image = pa.array([None, {"bytes": png(), "path": None}], STRUCT)
    write(tmp_path / "m.parquet", {"text": ["t", None], "image": image, "summary": ["a", "b"]})
    rows = open_files(str(tmp_path / "m.parquet"), DataSettings())
    assert (rows[0].text, rows[0].images) == ("t", ())
    assert (rows[1].text, rows[1].images) == (None, (png(),))


GOOD = ["a", "b", "c"]


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"text": GOOD}, ": no column 'summary'; found: 'text'"),
        ({"summary": GOOD, "x": GOOD}, ": no column 'text'; found: 'summary', 'x'"),
        ({"text": [1, 2, 3], "summary": GOOD}, ": column 'text' is int64, not a text"),
        ({"text": GOOD, "summary": [["a"], ["b"], []]}, ": column 'summary' is list<"),
        ({"text": [b"a"] * 3, "summary": GOOD}, ": column 'text' is binary, not a text"),
        ({"text": GOOD, "summary": GOOD, "instruction": [1.5] * 3}, "'instruction' is double"),
        ({"image": [1, 2, 3], "summary": GOOD}, ": column 'image' is int64, not bytes, a path"),
        ({"image": [[[b"x"]]] * 3, "summary": GOOD}, ": column 'image' is list<"),
        ({"image": [{"data": b"x"}] * 3, "summary": GOOD}, ": column 'image' is struct<"),
        ({"image": [{"bytes": 3}] * 3, "summary": GOOD}, ": column 'image' is struct<"),
        ({"text": ["a", "b", None], "summary": GOOD}, ":row 3: field 'text' is null"),
        ({"text": GOOD, "summary": pa.nulls(3)}, ":row 1: field 'summary' is null"),
        ({"text": GOOD, "summary": ["a", " \n", "c"]}, ":row 2: field 'summary' is empty"),
        (
            {"text": GOOD, "summary": GOOD, "instruction": ["x", "", "y"]},
            ":row 2: field 'instruction'",
        ),
        (
            {"image": [None, b"x", None], "images": [[b"x"], [b"y"], [b"z"]], "summary": GOOD},
            ":row 2: both 'image' and 'images'",
        ),
        ({"image": [b"x", b"", b"x"], "summary": GOOD}, ":row 2: an image of no bytes"),
        ({"image": [b"x", None, b"x"], "summary": GOOD}, ":row 2: no page: nothing in 'image'"),
        ({"images": [[b"x"], [], [b"x"]], "summary": GOOD}, ":row 2: no page: nothing in 'images'"),
        (
            {"images": [[b"x"], [None], [b"x"]], "summary": GOOD},
            ":row 2: image is a path, images a",
        ),
        ({"image": ["none.png"] * 3, "summary": GOOD}, "none.png: no such image"),
        ({"image": ["../up.png"] * 3, "summary": GOOD}, ":row 1: image '../up.png' is outside of"),
        (
            {"image": [{"bytes": None, "path": "/etc/hostname"}] * 3, "summary": GOOD},
            "is outside of",
        ),
    ],
)
def test_what_cannot_be_used_is_named_by_file_and_row_or_column(tmp_path, columns, message):
    path = write(tmp_path / "rows.parquet", columns, 2)
    with pytest.raises(UserError) as raised:
        open_files(path, DataSettings())
    assert str(raised.value).startswith(path) and message in str(raised.value)


def test_text_that_is_not_utf8_and_two_columns_of_one_name_are_errors(tmp_path):
    bad = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    path = write(tmp_path / "a.parquet", {"text": bad, "summary": ["a", "b"]})
    with pytest.raises(UserError, match="a.parquet:row 2: a text is not UTF-8"):
        open_files(path, DataSettings())
    table = pa.Table.from_arrays([pa.array(GOOD)] * 3, ["text", "summary", "text"])
    with pytest.raises(UserError, match="several columns are called 'text'"):
        open_files(write(tmp_path / "b.parquet", table), DataSettings())


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"no such thing" * 99,
        lambda data: b"PAR1" + data[-100:],
        lambda data: data[:-8] + b"\xff\xff\xff\x7fPAR1",
        lambda data: b"PAR1" + b"\x55" * (len(data) // 2) + data[len(data) // 2 + 4 :],
    ],
)
def test_a_file_that_is_no_parquet_or_not_whole_is_refused(tmp_path, damage):
    path = tmp_path / "rows.parquet"
    write(path, {"text": GOOD * 50, "summary": GOOD * 50}, 50, use_dictionary=False)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="rows.parquet: not a readable Parquet file"):
        open_files(str(path), DataSettings())


def test_a_damaged_page_is_found_by_its_checksum(tmp_path):
    path = tmp_path / "rows.parquet"
    write(
        path,
        {"text": ["needle" * 9], "summary": ["a"]},
        use_dictionary=False,
        compression="none",
        write_page_checksum=True,
    )
    path.write_bytes(path.read_bytes().replace(b"needleneedle", b"needleneddle"))
    with pytest.raises(UserError, match="CRC"):
        open_files(str(path), DataSettings())


def test_a_row_group_that_is_too_large_is_refused_by_what_it_holds_not_by_what_it_says(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(parquet, "LARGEST_GROUP", 100_000)
    long = [f"{i}" + "x" * 1000 for i in range(200)]
    path = write(tmp_path / "a.parquet", {"text": long, "summary": long}, 200)
    with pytest.raises(UserError, match="row group 0 of 200 rows takes more.*row_group_size=1000"):
        open_files(path, DataSettings())
    # A few kilobytes in the file, since all are the same: only decoding tells.
    path = write(tmp_path / "b.parquet", {"text": long[:1] * 200, "summary": long[:1] * 200}, 200)
    with pytest.raises(UserError, match="row group 0 of 200 rows takes more"):
        open_files(path, DataSettings())


def test_groups_are_kept_within_bounds_and_not_decoded_more_often_than_needed(
    tmp_path, monkeypatch
):
    texts = [f"{i} " + "x" * 1000 for i in range(120)]
    path = write(tmp_path / "a.parquet", {"text": texts, "summary": texts}, 10)
    rows, order = open_files(path, DataSettings()), np.random.default_rng(0).permutation(120)
    for i in [*order, *order]:
        assert rows[int(i)].text == texts[i]
    assert rows.parquet.decoded == 12  # all fit: each once
    monkeypatch.setattr(parquet, "CACHE_BYTES", 50_000)  # two of twelve
    rows = open_files(path, DataSettings())
    for i in order:
        assert rows[int(i)].text == texts[i]
        assert sum(size for _, size in rows.parquet.groups.values()) <= 50_000
    assert 12 < rows.parquet.decoded <= 120
    for i in range(120):  # in order, a small cache does as well as a large one
        rows[i]
    assert rows.parquet.decoded <= 120 + 12


def test_threads_share_the_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "CACHE_BYTES", 30_000)
    texts = [f"{i} " + "x" * 500 for i in range(90)]
    for name in "abc":
        write(tmp_path / f"{name}.parquet", {"text": texts, "summary": [name] * 90}, 10)
    rows, wrong = open_files(str(tmp_path), DataSettings()), []

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(270).tolist():
            row = rows[i]
            if (row.text, row.summary) != (texts[i % 90], "abc"[i // 90]):
                wrong.append(i)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_second_start_decodes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "CACHED_FROM", 100)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path / "a.parquet", {"text": GOOD * 9, "summary": GOOD * 9})
    first = open_files(path, DataSettings())
    monkeypatch.setattr(index, "_scan", None)
    again = open_files(path, DataSettings())
    assert again.parquet.decoded == 0
    assert [again[i] for i in range(27)] == [first[i] for i in range(27)]
    assert [again.size(i) for i in range(27)] == [first.size(i) for i in range(27)]


def test_a_folder_of_both_kinds_is_refused_and_held_out_rows_may_be_of_the_other(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": GOOD, "summary": GOOD})
    (tmp_path / "b.jsonl").write_text('{"text": "t", "summary": "s"}\n')
    with pytest.raises(UserError, match="holds a.parquet and b.jsonl; give one kind"):
        open_files(str(tmp_path), DataSettings())
    train, held = open_rows(DataSettings(data=path, val_data=str(tmp_path / "b.jsonl")), 0)
    assert (len(train), len(held)) == (3, 1) and train.signature() != held.signature()


def test_without_pyarrow_one_line_says_what_to_install(tmp_path):
    path = write(tmp_path / "a.parquet", {"text": GOOD, "summary": GOOD})
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from deepsynth_min.train import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "--data", path, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    line = "error: Parquet needs pyarrow: pip install 'deepsynth-min[parquet]'\n"
    assert (done.returncode, done.stderr) == (2, line)
