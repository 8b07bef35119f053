"""The row index: kept on disk for large files, made again when the file or the question changes."""

import json
import os

import numpy as np
import pytest

from deepsynth_min.data.sources import open_files
from deepsynth_min.errors import UserError
from deepsynth_min.files import index
from deepsynth_min.settings import DataSettings


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large, and a cache folder of its own."""
    monkeypatch.setattr(index, "CACHED_FROM", 1000)
    monkeypatch.setattr(index, "_BUFFER", 16)  # many spills
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"text": f"text {i}", "summary": "s" * (i % 7)} | {"summary": f"s{i}"})
        for i in range(200)
    ]
    path.write_text("\n\n".join(lines) + "\n")
    return path


def notes(tmp_path) -> list:
    return list((tmp_path / "cache" / "deepsynth_min").iterdir())


def test_the_second_start_reads_no_row(tmp_path, large, monkeypatch):
    first = open_files(str(large), DataSettings())
    (kept,) = notes(tmp_path)
    assert kept.stat().st_size == 200 * 16
    monkeypatch.setattr(index, "_scan", None)  # would fail if it were called
    again = open_files(str(large), DataSettings())
    assert isinstance(again.indices[0], np.memmap)
    assert [again[i] for i in (0, 77, 199)] == [first[i] for i in (0, 77, 199)]
    assert again[77].where.endswith(":155") and again[77].text == "text 77"
    assert again.size(77) == len(json.dumps({"text": "text 77", "summary": "s77"})) + 2


def test_a_changed_file_or_other_field_names_are_indexed_anew(tmp_path, large, monkeypatch):
    open_files(str(large), DataSettings())
    large.write_text(large.read_text().replace("text 5", "TEXT 5"))
    os.utime(large, ns=(1, 1))
    assert open_files(str(large), DataSettings())[5].text == "TEXT 5"
    assert len(notes(tmp_path)) == 2
    with pytest.raises(UserError, match="rows.jsonl:1: no field 'body'"):
        open_files(str(large), DataSettings(text_field="body"))
    kept = sorted(path.name.rpartition(".")[2] for path in notes(tmp_path))
    assert kept == ["faults", "rows", "rows", "rows"]  # nothing half-made stays
    monkeypatch.setattr(index, "_scan", None)  # what was wrong is known, too
    with pytest.raises(UserError, match="rows.jsonl:1: no field 'body'.* 200 of 200 rows"):
        open_files(str(large), DataSettings(text_field="body"))


def test_what_cannot_be_used_is_known_at_the_second_start(tmp_path, large, monkeypatch):
    large.write_text(large.read_text().replace('"s7"', '""').replace('"text": "text 9"', '"a": 1'))
    skip = DataSettings(on_bad_row="skip")
    first = open_files(str(large), skip)
    monkeypatch.setattr(index, "_scan", None)
    again = open_files(str(large), skip)
    assert len(again) == 198 and again.faults == first.faults
    assert [fault.reason for fault in again.faults] == [
        "field 'summary' is empty",
        "no field 'text'; found: 'a', 'summary'",
    ]
    assert [again[i].text for i in (6, 7, 8)] == ["text 6", "text 8", "text 10"]
    with pytest.raises(UserError, match="rows.jsonl:15: field 'summary' is empty; in all 2 of 200"):
        open_files(str(large), DataSettings())


@pytest.mark.parametrize("content", [b"", b"x" * 17])
def test_notes_that_cannot_be_right_are_made_again(tmp_path, large, content):
    open_files(str(large), DataSettings())
    (kept,) = notes(tmp_path)
    kept.write_bytes(content)
    assert len(open_files(str(large), DataSettings())) == 200


def test_a_folder_counts_through_its_files(tmp_path):
    for name, count in (("a", 3), ("b", 1), ("c", 2)):
        rows = [json.dumps({"text": f"{name}{i}", "summary": "s"}) + "\n" for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(rows))
    rows = open_files(str(tmp_path), DataSettings())
    assert [rows[i].text for i in range(len(rows))] == ["a0", "a1", "a2", "b0", "c0", "c1"]
    for i in (-1, 6):
        with pytest.raises(IndexError):
            rows[i]
