"""Data as people have it (tests/cases): what becomes the page, what the answer, and what is said.

Each file is of a kind that public bug reports name; each test tries other content of its kind too.
"""

import base64
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from deepsynth_min.data.sources import open_data, open_files
from deepsynth_min.errors import UserError
from deepsynth_min.settings import DataSettings

CASES = Path(__file__).parents[1] / "cases"
ORDERS = [
    "Order 1207 Two lamps, 48.00",
    "Order 1208 One chair, 120.00",
    "Order 1209 Six cups, 27.00",
    "Order 1210 A mirror, 75.50",
]


def read(path, **settings) -> list:
    rows = open_files(str(path), DataSettings(**settings))
    return [rows[i] for i in range(len(rows))]


def notes(path, **settings) -> list[str]:
    return open_data(DataSettings(data=str(path), **settings), seed=0).notes


def names(row) -> list[str]:
    return [image.name for image in row.images]


def png(colour="red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(out, "PNG")
    return out.getvalue()


# -- an image is the page and its text the answer -------------------------------------------------


def test_an_image_and_a_text_are_a_page_and_its_answer():
    rows = read(CASES / "image-and-text.jsonl")
    assert [row.summary for row in rows] == ORDERS
    assert [names(row) for row in rows] == [[f"{i}.png"] for i in range(4)]
    assert all(row.text is None and row.instruction is None for row in rows)
    (note,) = notes(CASES / "image-and-text.jsonl")
    assert note.endswith("page: the images in 'image'; answer: 'text'; 4 rows")


def test_an_image_column_may_have_any_name():
    rows = read(CASES / "image-column.parquet")
    assert [row.summary for row in rows] == ORDERS
    for i, row in enumerate(rows):
        assert row.images == ((CASES / "images" / f"{i}.png").read_bytes(),) and row.text is None


@pytest.mark.parametrize("name", ["scan", "sha", "picture"])
@pytest.mark.parametrize("answer", ["markdown", "ground_truth", "text"])
def test_image_columns_are_found_by_what_they_hold(tmp_path, name, answer):
    table = pa.table({name: [png(), png("blue")], answer: ["a", "b"], "id": [1, 2]})
    pq.write_table(table, tmp_path / "a.parquet")
    rows = read(tmp_path / "a.parquet")
    assert [(row.images, row.summary) for row in rows] == [((png(),), "a"), ((png("blue"),), "b")]


def test_a_folder_of_images_with_metadata_is_read_by_file_name():
    rows = read(CASES / "image-folder")
    assert [row.summary for row in rows] == ORDERS
    assert [names(row) for row in rows] == [[f"{i}.png"] for i in range(4)]


def test_metadata_as_a_table_with_summaries_and_in_folders_of_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.png").write_bytes(png())
        (tmp_path / split / "metadata.csv").write_text(f"file_name,summary\na.png,Of {split}.\n")
    (row,) = read(tmp_path)
    assert row.summary == "Of train." and row.images == (tmp_path / "train" / "a.png",)


def test_a_text_an_image_and_a_summary_give_either_page():
    for settings in ({}, {"page_from": "text"}):
        rows = read(CASES / "deepsynth.parquet", **settings)
        assert rows and all(row.text and not row.images for row in rows)
    shown = read(CASES / "deepsynth.parquet", page_from="image")
    assert all(row.text is None and row.images[0][:4] == b"\x89PNG" for row in shown)
    assert [row.summary for row in shown] == [row.summary for row in rows]
    assert "drawn from 'text', or the images in" in notes(CASES / "deepsynth.parquet")[0]


# -- chat formats ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["messages.jsonl", "content-parts.jsonl", "conversations.json"])
def test_one_question_and_one_answer_are_read(name):
    rows = read(CASES / name)
    assert [row.summary for row in rows] == ORDERS
    assert [names(row) for row in rows] == [[f"{i}.png"] for i in range(4)]
    assert {row.instruction.strip().removeprefix("<image>\n") for row in rows} == {"Free OCR."}


def chat(*turns, **more) -> str:
    return json.dumps({"messages": [dict(zip(("role", "content"), t)) for t in turns]} | more)


def test_several_images_are_several_pages_and_a_data_uri_is_an_image(tmp_path):
    uri = "data:image/png;base64," + base64.b64encode(png()).decode()
    (tmp_path / "a.png").write_bytes(png("blue"))
    parts = [{"type": "image_url", "image_url": {"url": uri}}, {"type": "image", "image": "a.png"}]
    parts += [{"type": "text", "text": "Compare. "}]
    lines = [
        chat(("user", parts), ("assistant", "Two.")),
        chat(("system", ""), ("user", "<image><image>\nBoth?"), ("assistant", "Yes."))[:-1]
        + ', "images": ["a.png", "a.png"]}',
        chat(("user", "No page?"), ("assistant", "None.")),
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    rows = read(tmp_path / "a.jsonl")
    assert rows[0].images == (png(), tmp_path / "a.png") and rows[0].instruction == "Compare. "
    assert names(rows[1]) == ["a.png", "a.png"] and rows[1].summary == "Yes."
    assert rows[2].images == () and rows[2].text is None and rows[2].instruction == "No page?"


@pytest.mark.parametrize(
    "line, reason",
    [
        (
            chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
            "one question",
        ),
        (chat(("user", "a")), "turns are user; one question (user) and one answer are read"),
        (chat(("system", "Be brief."), ("user", "a"), ("assistant", "b")), "a system turn"),
        (chat(("user", "<image>a"), ("assistant", "b"), images=["0.png"] * 2), "no such image"),
        (chat(("user", "a <image>"), ("assistant", "b")), "<image> in the middle"),
        (chat(("user", "a"), ("assistant", "")), "field 'answer' is empty"),
        (chat(("robot", "a"), ("assistant", "b")), "a turn of the role 'robot'"),
        ('{"messages": "text"}', "field 'messages' is not a list of turns"),
        ('{"messages": [1]}', "a turn is a number"),
        (chat(("user", [{"type": "video"}]), ("assistant", "b")), "neither text nor image"),
        (chat(("user", [{"type": "image"}]), ("assistant", "b")), "1 place for images, 0 images"),
        (chat(("user", "a"), ("assistant", "b"), image="https://x.y/z.png"), "is an address"),
        (chat(("user", "a"), ("assistant", "b"), image="data:image/png,x"), "only ;base64"),
        (chat(("user", "a"), ("assistant", "b"), image="data:;base64,%"), "image 'data:;base64'"),
    ],
)
def test_a_conversation_of_another_kind_is_named(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_text(chat(("user", "a"), ("assistant", "b")) + "\n" + line)
    with pytest.raises(UserError, match="a.jsonl:2: ") as raised:
        read(tmp_path / "a.jsonl")
    assert reason in str(raised.value)


# -- rows without a page, names of fields ---------------------------------------------------------


def test_rows_without_a_page_are_an_instruction_and_its_answer():
    rows = read(CASES / "mixed.jsonl")
    assert [(row.text is not None, len(row.images)) for row in rows] == [
        (False, 1),
        (False, 0),
        (True, 0),
        (False, 0),
    ]
    assert (rows[1].instruction, rows[1].summary) == ("Name the capital of France.", "Paris.")
    assert (rows[3].instruction, rows[3].summary) == ("What is two and two?", "Four.")


@pytest.mark.parametrize(
    "line, page, instruction, answer",
    [
        ({"article": "p", "highlights": "a"}, "p", None, "a"),
        ({"document": "p", "summary": "a", "id": 3}, "p", None, "a"),
        ({"instruction": "i", "input": "p", "output": "a"}, "p", "i", "a"),
        ({"question": "i", "context": "p", "answer": "a"}, "p", "i", "a"),
        ({"prompt": "i", "completion": "a"}, None, "i", "a"),
        ({"text": "p", "abstract": "a", "summary": None}, None, None, None),
    ],
)
def test_fields_are_found_by_their_usual_names(tmp_path, line, page, instruction, answer):
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    if answer is None:  # an answer that is missing is not replaced by another field
        with pytest.raises(UserError, match="a.jsonl:1: field 'summary' is null"):
            read(tmp_path / "a.jsonl")
        return
    (row,) = read(tmp_path / "a.jsonl")
    assert (row.text, row.instruction, row.summary) == (page, instruction, answer)


def test_every_part_can_be_set(tmp_path):
    shutil.copy(CASES / "images" / "0.png", tmp_path / "0.png")
    line = {"text": "x", "summary": "y", "p": "0.png", "q": "do", "r": "answer"}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    (row,) = read(
        tmp_path / "a.jsonl",
        image_field="p",
        instruction_field="q",
        summary_field="r",
        page_from="image",
    )
    assert names(row) == ["0.png"] and (row.instruction, row.summary) == ("do", "answer")
    (row,) = read(tmp_path / "a.jsonl", text_field="q", summary_field="r")
    assert (row.text, row.summary) == ("do", "answer")


# -- bad rows -------------------------------------------------------------------------------------

BAD = {
    2: "field 'summary' is empty",
    3: "field 'summary' is null, not a text",
    4: "not JSON",
    7: "field 'text'",
    10: "no such image",
    11: "field 'summary' is a number, not a text",
    13: "not JSON",
}


def test_all_bad_rows_are_listed_in_one_pass():
    with pytest.raises(
        UserError, match="bad-rows.jsonl:2: .* 7 of 13 rows cannot be used"
    ) as raised:
        read(CASES / "bad-rows.jsonl")
    found = {int(line.split(":")[1]): line.split(": ", 1)[1] for line in raised.value.details}
    assert list(found) == list(BAD)
    assert all(BAD[n] in found[n] or n == 7 for n in BAD), found


def test_bad_rows_are_left_out_when_asked_unless_they_are_too_many():
    rows = open_files(str(CASES / "bad-rows.jsonl"), DataSettings(on_bad_row="skip", max_bad=0.6))
    assert [row.where.split(":")[1] for row in map(rows.__getitem__, range(len(rows)))] == [
        "1",
        "5",
        "6",
        "8",
        "9",
        "12",
    ]
    assert [int(fault.where.split(":")[1]) for fault in rows.faults] == list(BAD)
    with pytest.raises(UserError, match="7 of 13 rows .*more than --max-bad 0.01"):
        read(CASES / "bad-rows.jsonl", on_bad_row="skip")
