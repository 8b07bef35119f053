"""Containers of rows: arrays, tables, compressed files, folders with splits and subsets."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pytest

from deepsynth_min.data.sources import open_data, open_files
from deepsynth_min.errors import UserError
from deepsynth_min.settings import DataSettings

CASES = Path(__file__).parents[1] / "cases"


def read(path, **settings) -> list:
    rows = open_files(str(path), DataSettings(**settings))
    return [rows[i] for i in range(len(rows))]


# -- containers -----------------------------------------------------------------------------------


def test_arrays_tables_and_compressed_lines_hold_the_same_rows():
    array, table, packed = (read(CASES / n) for n in ("array.json", "rows.csv", "rows.jsonl.gz"))
    assert len(array) == len(table) == len(packed) == 8
    for i, (a, t, p) in enumerate(zip(array, table, packed)):
        assert a.text.startswith(f"Report {i}: the ") and (a.text, a.summary) == (p.text, p.summary)
        assert t.text == a.text + '\nA second line, with "quotes".' and t.summary == a.summary
    assert array[3].where.endswith("array.json:row 4") and table[1].where.endswith("rows.csv:4")
    assert packed[2].where.endswith("rows.jsonl.gz:3")


ROWS = [
    {"text": "plain", "summary": "a"},
    {"text": 'quotes " and , ; \\ \t', "summary": "ä € 🙂"},
    {"text": "two\nlines\r\n", "summary": "[{]}"},
    {"text": "last", "summary": "z", "instruction": "Say."},
]


@pytest.mark.parametrize("form", ["array", "indented", "data", "one line", "rows after a key"])
def test_json_arrays_in_any_form(tmp_path, form):
    content = {
        "array": json.dumps(ROWS),
        "indented": "\ufeff\n " + json.dumps(ROWS, indent=3, ensure_ascii=False),
        "data": json.dumps({"version": "[1]", "more": {"data": [1]}, "data": ROWS, "n": [2]}),
        "one line": json.dumps({"data": ROWS}),
        "rows after a key": json.dumps({"info": {"x": ["data"]}, "rows": ROWS}),
    }[form]
    (tmp_path / "a.json").write_text(content)
    for order in (range(4), (3, 1, 0, 2)):
        rows = open_files(str(tmp_path / "a.json"), DataSettings())
        for i in order:
            assert rows[i].text == ROWS[i]["text"] and rows[i].summary == ROWS[i]["summary"]
    assert rows[3].instruction == "Say."


@pytest.mark.parametrize("delimiter, name", [(",", "a.csv"), (";", "a.csv"), ("\t", "a.tsv")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_with_other_delimiters_and_line_ends(tmp_path, delimiter, name, end):
    quote = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
    lines = ["text,summary,instruction".replace(",", delimiter)]
    for row in ROWS:
        cells = [row["text"], row["summary"], row.get("instruction", "")]
        lines.append(delimiter.join(map(quote, cells)))
    (tmp_path / name).write_bytes((end.join(lines) + end + end).encode())
    rows = read(tmp_path / name)
    assert [(r.text, r.summary, r.instruction) for r in rows] == [
        (row["text"], row["summary"], row.get("instruction")) for row in ROWS
    ]


@pytest.mark.parametrize("packed", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("inner", ["a.jsonl", "a.json", "a.csv"])
def test_compressed_files_are_unpacked_once(tmp_path, monkeypatch, packed, inner):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = {
        "a.jsonl": "\n".join(map(json.dumps, ROWS[:2])),
        "a.json": json.dumps(ROWS[:2]),
        "a.csv": 'text,summary\nplain,a\n"quotes "" and , ; \\ \t",ä € 🙂\n',
    }[inner].encode()
    pack = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    }[packed]
    path = tmp_path / (inner + packed)
    path.write_bytes(pack(text))
    for _ in range(2):
        assert [row.text for row in read(path)] == [row["text"] for row in ROWS[:2]]
    assert len(list((tmp_path / "cache" / "deepsynth_min").iterdir())) == 1
    path.write_bytes(pack(text)[:-9])
    with pytest.raises(UserError, match=f"{path.name}: cannot be unpacked"):
        read(path)
    assert len(list((tmp_path / "cache" / "deepsynth_min").iterdir())) == 1


def test_what_is_no_file_of_rows_is_told_so(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.json").write_text('{"a": {"0": "x"}, "b": {"0": "y"}, "c": 1,\n"d": 2}')
    (tmp_path / "c.csv").write_bytes("text,summary\na,b\n".encode("utf-16"))
    (tmp_path / "d.csv").write_text("text,text\na,b\n")
    for name in ("e.jsonl", "f.json"):  # with UTF-16's mark, and without
        encoding = "utf-16" if name == "e.jsonl" else "utf-16-le"
        (tmp_path / name).write_bytes('{"text": "a", "summary": "b"}\n'.encode(encoding))
    for name, reason in (
        ("a.txt", "not a file of rows; known are .jsonl, .json"),
        ("b.json", "neither JSON lines nor an array of rows"),
        ("c.csv", "looks like UTF-16; convert it to UTF-8"),
        ("d.csv", "several columns are called 'text'"),
        ("e.jsonl", "looks like UTF-16; convert it to UTF-8"),
        ("f.json", "looks like UTF-16; convert it to UTF-8"),
    ):
        with pytest.raises(UserError, match=f"{name}:.*{reason}"):
            read(tmp_path / name)


@pytest.mark.parametrize(
    "name, line",
    [
        ("a.jsonl", '{"text": "ein M\u00fcller", "summary": "b"}'),
        ("a.json", '[{"text": "ein M\u00fcller", "summary": "b"}]'),
        ("a.csv", "text,summary\nein M\u00fcller,b"),
    ],
)
def test_another_encoding_than_utf8_is_named(tmp_path, name, line):
    (tmp_path / name).write_bytes(line.encode("latin-1"))
    with pytest.raises(UserError) as raised:
        read(tmp_path / name)
    message = str(raised.value)
    assert "not UTF-8 at byte " in message and "JSON" not in message
    assert "it looks like Latin-1 or Windows-1252: iconv -f CP1252 -t UTF-8" in message


def test_bytes_of_no_known_encoding_are_given_no_name(tmp_path):
    """Two bytes a letter, as of Shift-JIS."""
    (tmp_path / "a.jsonl").write_bytes(
        '{"text": "\u65e5\u672c\u8a9e", "summary": "b"}'.encode("cp932")
    )
    with pytest.raises(UserError, match=r"not UTF-8 at byte \d+; in all 1 of 1") as raised:
        read(tmp_path / "a.jsonl")
    assert "looks like" not in str(raised.value)
    # It is the only row: not to be left out, nor listed a second time.
    assert "--on-bad-row" not in str(raised.value) and not raised.value.details


@pytest.mark.parametrize(
    "name, content, expected",
    [
        ("a.json", '[{"text": "a", "summary": "b"}, 3, {"text": "c", "summary": "d"}]', [2]),
        ("a.json", '[{"text": "a", "summary": "b"},, {"text": "c", "summary": "d"}]', [2]),
        ("a.json", '[{"text": "a", "summary": "b"}, {"text": "c", "summ', [2]),
        ("a.json", '[{"text": "a", "summary": "b"}, {"text": "c" "summary": 1}, null]', [2, 3]),
        ("a.csv", "text,summary\na,b\nc\nd,e,f\n", [3, 4]),
        ("a.csv", 'text,summary\na,b\n"c,d\ne,f\n', [3]),
        ("a.csv", "text,summary\na,b\nc,\n\xff,b\n", [3, 4]),
    ],
)
def test_rows_of_arrays_and_tables_are_named_by_number_or_line(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    rows = open_files(str(tmp_path / name), DataSettings(on_bad_row="skip", max_bad=1))
    assert rows[0].text == "a"
    assert [int(fault.where.split(":")[-1].split()[-1]) for fault in rows.faults] == expected
    good = 2 if content.count('"d"') else 1
    assert len(rows) == good


# -- splits ---------------------------------------------------------------------------------------


def test_a_folder_with_splits_trains_on_train_alone():
    data = open_data(DataSettings(data=str(CASES / "splits")), seed=0)
    assert [data.train[i].text[:8] for i in range(len(data.train))] == [
        f"Report {i}" for i in range(5)
    ]
    assert [row.text[:8] for row in map(data.held_out.__getitem__, range(2))] == [
        "Report 5",
        "Report 6",
    ]
    assert len(data.held_out) == 2
    assert data.notes[-1].endswith(
        "'train' trains (5 rows), validation is held out (2 rows); test left alone"
    )


def test_the_split_that_trains_can_be_named():
    (row,) = read(CASES / "splits", data_split="test")
    assert row.text.startswith("Report 7")
    with pytest.raises(UserError, match="no files of the split 'dutch' in this data set, only "):
        read(CASES / "splits", data_split="dutch")


def test_subsets_are_chosen_by_name_or_by_the_cards_word(tmp_path):
    for name in ("en", "de"):
        (tmp_path / name).mkdir()
        for split in ("train", "validation"):
            line = {"text": f"{name} {split}", "summary": "s"}
            (tmp_path / name / f"{split}.jsonl").write_text(json.dumps(line))
    settings = DataSettings(data=str(tmp_path), data_subset="de")
    data = open_data(settings, seed=0)
    assert (data.train[0].text, data.held_out[0].text) == ("de train", "de validation")
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: english\n  data_files:\n"
        "  - split: train\n    path: en/tr*\n  - split: validation\n    path: [en/v*]\n"
        "- config_name: german\n  data_files: de/train.jsonl\n---\n"
    )
    with pytest.raises(UserError, match="has the subsets english, german; name one with --data-s"):
        open_data(DataSettings(data=str(tmp_path)), seed=0)
    assert read(tmp_path, data_subset="german")[0].text == "de train"
    data = open_data(DataSettings(data=str(tmp_path), data_subset="english"), seed=0)
    assert (data.train[0].text, data.held_out[0].text) == ("en train", "en validation")
