"""Data files: every row that cannot be used is an error that names file and line."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from deepsynth_min.data.sources import open_files, open_rows
from deepsynth_min.errors import UserError
from deepsynth_min.settings import DataSettings

GOOD = '{"text": "Some document.", "summary": "Its answer."}\n'


def write(tmp_path, content: str | bytes, name="rows.jsonl") -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops", "not JSON"),
        ("[1, 2]", "not a JSON object but an array"),
        ('{"text": "a"}', "no field 'summary'; found: 'text'"),
        ('{"summary": "a"}', "no field 'text'; found: 'summary'"),
        ('{"text": "  \\n", "summary": "a"}', "field 'text' is empty"),
        ('{"text": "a", "summary": ""}', "field 'summary' is empty"),
        ('{"text": 7, "summary": "a"}', "field 'text' is a number, not a text"),
        ('{"text": null, "summary": "a"}', "field 'text' is null"),
        ('{"text": "a\\ud800b", "summary": "a"}', "field 'text' is not valid Unicode"),
        ('{"text": "a", "summary": "b", "instruction": 3}', "field 'instruction' is a number"),
        ('{"image": "none.png", "summary": "a"}', "none.png: no such image"),
        ('{"image": "../up.png", "summary": "a"}', "outside of the data folder"),
        ('{"image": "/etc/hostname", "summary": "a"}', "outside of the data folder"),
        ('{"images": [], "summary": "a"}', "no page: nothing in 'text'"),
        ('{"text": null, "image": null, "summary": "a"}', "field 'text' is null"),
        ('{"images": [3], "summary": "a"}', "images a list of paths"),
        ("[" * 100_000, "not JSON"),
        ('{"text": 1' + "0" * 5000 + "}", "not JSON"),
        ('{"image": "a\\u0000b", "summary": "a"}', "not a possible file name"),
        ('{"image": "a\\ud800b", "summary": "a"}', "not a possible file name"),
        ('{"image": "' + "x" * 5000 + '", "summary": "a"}', "File name too long"),
        ('{"image": "' + "x/" * 5000 + '", "summary": "a"}', "File name too long"),
        ('{"image": ".", "summary": "a"}', "not a regular file"),
        ('{"images": ["a.png"], "image": "b.png", "summary": "a"}', "both 'image' and 'images'"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_by_file_and_line(tmp_path, line, message):
    path = write(tmp_path, GOOD + "\n" + line + "\n" + GOOD)
    with pytest.raises(UserError) as raised:
        open_files(path, DataSettings())
    assert str(raised.value).startswith(f"{path}:3: ") and message in str(raised.value)


def test_what_is_advised_for_bad_rows_helps(tmp_path):
    other, number = '{"Text": "a", "Antwort": "b"}\n', '{"text": 1, "summary": "a"}\n'
    for content, advice in (
        (
            GOOD + "\n" + number * 2,
            "--on-bad-row skip leaves them out, with a --max-bad above 0.01",
        ),
        (other * 2, "--text-field, --image-field, --summary-field say which fields are meant"),
        (number * 2, "2 of 2 rows cannot be used (2 field 'text' is not a text)"),
    ):
        path = write(tmp_path, content)
        with pytest.raises(UserError) as raised:
            open_files(path, DataSettings())
        assert str(raised.value).endswith(advice)


def test_bytes_that_are_not_utf8_are_an_error(tmp_path):
    path = write(tmp_path, GOOD.encode() + b'{"text": "\xff", "summary": "a"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:2: not UTF-8 at byte 10"):
        open_files(path, DataSettings())


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_rows_is_an_error(tmp_path, content):
    with pytest.raises(UserError, match="no rows"):
        open_files(write(tmp_path, content), DataSettings())


def test_a_missing_file_and_an_empty_folder_are_errors(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_files(str(tmp_path / "none.jsonl"), DataSettings())
    with pytest.raises(UserError, match="no file of rows in this folder"):
        open_files(str(tmp_path), DataSettings())


@pytest.mark.parametrize("kind", ["folder", "dangling link", "pipe"])
def test_only_regular_files_of_a_folder_are_data(tmp_path, kind):
    write(tmp_path, GOOD, "a.jsonl")
    other = tmp_path / "b.jsonl"
    if kind == "folder":
        other.mkdir()
    elif kind == "pipe":
        os.mkfifo(other)
    else:
        other.symlink_to("nowhere")
    with pytest.raises(UserError, match="b.jsonl: "):
        open_files(str(tmp_path), DataSettings())


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "\ud800", "/dev/zero", "/proc/1/mem"])
def test_what_cannot_be_a_data_file_is_refused(path):
    with pytest.raises(UserError):
        open_files(path, DataSettings())


def test_a_data_file_that_the_system_does_not_give_is_refused(tmp_path, monkeypatch):
    path = write(tmp_path, GOOD)

    def refuse(*_):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("deepsynth_min.data.rows.row_index", refuse)  # root may read everything
    with pytest.raises(UserError, match="rows.jsonl: Permission denied"):
        open_files(path, DataSettings())


def test_a_row_of_very_many_fields_lists_a_few(tmp_path):
    path = write(tmp_path, json.dumps({f"field {i}": i for i in range(20_000)}))
    with pytest.raises(UserError) as raised:
        open_files(path, DataSettings())
    assert "'field 9', ...; in all" in str(raised.value)


def test_rows_held_out_are_not_rows_trained_on(tmp_path):
    path = write(tmp_path, GOOD * 3)
    (tmp_path / "link.jsonl").symlink_to("rows.jsonl")
    for data, val in ((path, path), (path, str(tmp_path / "link.jsonl")), (str(tmp_path), path)):
        with pytest.raises(UserError, match="--val-data .*jsonl: is in --data too"):
            open_rows(DataSettings(data=data, val_data=val), seed=0)


def test_two_fields_of_one_name_are_refused():
    """An instruction that is the answer would give it away."""
    with pytest.raises(UserError, match="--summary-field and --instruction-field: both are"):
        DataSettings(summary_field="a", instruction_field="a")
    with pytest.raises(UserError, match="--text-field and --summary-field"):
        DataSettings(text_field="b", summary_field="b")


def test_rows_read_at_random_are_the_rows_as_written(tmp_path):
    """Byte order mark, CRLF, blank lines, a last line without end, a folder of two files."""
    texts = ["ä €", "zweite", "\u2028 third 🙂", "last"]
    lines = [
        json.dumps({"doc": t, "tl;dr": t * 2, "instruction": None}, ensure_ascii=i % 2 == 0)
        for i, t in enumerate(texts)
    ]
    write(tmp_path, b"\xef\xbb\xbf" + "\r\n\r\n".join(lines[:2]).encode(), "a.jsonl")
    write(tmp_path, "\n".join(["", *lines[2:]]), "b.jsonl")
    settings = DataSettings(text_field="doc", summary_field="tl;dr")
    rows = open_files(str(tmp_path), settings)
    for i in (3, 0, 2, 1):
        assert (rows[i].text, rows[i].summary) == (texts[i], texts[i] * 2)
    assert rows[2].where.endswith("b.jsonl:2")


def test_image_rows_name_files_inside_the_data_folder(tmp_path):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "data").mkdir()
    row = json.dumps({"images": ["../a.png", "../b.png"], "summary": "s", "instruction": "Say."})
    path = write(tmp_path / "data", row)
    rows = open_files(path, DataSettings(images_anywhere=True))
    assert [Path(p).resolve().name for p in rows[0].images] == ["a.png", "b.png"]
    assert rows[0].instruction == "Say." and rows[0].text is None


def test_a_field_that_is_null_is_as_one_that_is_not_there(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    lines = [
        '{"text": null, "images": null, "image": "a.png", "summary": "s"}\n',
        '{"text": "t", "images": null, "image": null, "summary": "s"}\n',
    ]
    rows = open_files(write(tmp_path, "".join(lines)), DataSettings())
    assert rows[0].images == (tmp_path / "a.png",) and rows[0].text is None
    assert rows[1].images == () and rows[1].text == "t"


def test_the_held_out_split_is_disjoint_complete_and_deterministic(tmp_path):
    path = write(
        tmp_path, "".join(json.dumps({"text": f"t{i}", "summary": "s"}) + "\n" for i in range(50))
    )
    settings = DataSettings(data=path, val_fraction=0.2)
    train, val = open_rows(settings, seed=3)
    texts = [[row.text for row in rows] for rows in (train, val)]
    assert len(texts[1]) == 10
    assert sorted(texts[0] + texts[1]) == sorted(f"t{i}" for i in range(50))
    again = [[row.text for row in rows] for rows in open_rows(settings, seed=3)]
    assert again == texts
    other = [[row.text for row in rows] for rows in open_rows(settings, seed=4)]
    assert set(other[1]) != set(texts[1])


def test_one_row_cannot_be_split_and_val_data_is_used_as_it_is(tmp_path):
    path = write(tmp_path, GOOD)
    with pytest.raises(UserError, match="one row cannot be split"):
        open_rows(DataSettings(data=path), seed=0)
    val = write(tmp_path, GOOD * 3, "val.jsonl")
    train, held_out = open_rows(DataSettings(data=path, val_data=val, val_samples=2), seed=0)
    assert (len(train), len(held_out)) == (1, 2)
    assert np.all([row.text == "Some document." for row in held_out])
