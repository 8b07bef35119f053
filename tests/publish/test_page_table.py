"""`render --data X --to FILE.parquet`: the pages that the model sees, for others to train on."""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from commands import words
from PIL import Image

from deepsynth_min import render
from deepsynth_min.data.samples import SampleBuilder
from deepsynth_min.data.sources import open_all
from deepsynth_min.data.tokenizer import EMBEDDED, load_tokenizer
from deepsynth_min.model.shape.presets import PRESETS
from deepsynth_min.options import change
from deepsynth_min.pages.renderer import render_pages
from deepsynth_min.publish import page_table
from deepsynth_min.settings import Settings

pq = pytest.importorskip("pyarrow.parquet")
TINY = "--model tiny --max-pages 3 --overflow truncate --workers 1".split()


def draw(data, to, *more) -> int:
    return render.main([*TINY, "--data", str(data), "--to", str(to), *map(str, more)])


def pixels(image) -> np.ndarray:
    """[height, width], or [height, width, 3]"""
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


def seen_by_the_model(data, **settings) -> list[np.ndarray]:
    values = {"model": "tiny", "max_pages": 3, "overflow": "truncate", "data": (str(data),)}
    settings = change(Settings(), **values | settings)
    builder = SampleBuilder(settings, PRESETS["tiny"], load_tokenizer(EMBEDDED))
    rows = open_all(settings.data).train
    return [builder.prompt(rows[i]).pages for i in range(len(rows))]


def assert_same_pages(rows: list[dict], expected: list[np.ndarray]) -> None:
    assert len(rows) == len(expected)
    for row, pages in zip(rows, expected):
        drawn = [pixels(image) for image in row["images"]]
        drawn = [page[None] if page.ndim == 2 else page.transpose(2, 0, 1) for page in drawn]
        assert np.array_equal(np.stack(drawn), pages)


@pytest.fixture(scope="module")
def table(tmp_path_factory, jsonl):
    to = tmp_path_factory.mktemp("table") / "pages.parquet"
    assert draw(jsonl, to) == 0
    return to


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(page_table, "PART_ROWS", 5)


def test_the_pages_are_those_that_the_model_sees(table, jsonl):
    rows = pq.read_table(table).to_pylist()
    given = [json.loads(line) for line in jsonl.read_text("utf-8").splitlines()]
    assert [(row["text"], row["summary"]) for row in rows] == [
        (row["text"], row["summary"]) for row in given
    ]
    assert_same_pages(rows, seen_by_the_model(jsonl))


def test_page_settings_are_those_of_training(tmp_path, jsonl):
    more = "--font-size 9 --mode 512 --align justify --columns 2 --limit 4".split()
    assert draw(jsonl, tmp_path / "a.parquet", *more) == 0
    settings = {"font_size": 9, "mode": "512", "align": "justify", "columns": 2, "limit": 4}
    expected = seen_by_the_model(jsonl, **settings)
    assert_same_pages(pq.read_table(tmp_path / "a.parquet").to_pylist(), expected)


def test_the_schema_is_the_hubs_image_format(table):
    schema = pq.read_schema(table)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names == ["text", "summary", "images"]
    assert features["images"] == {"feature": {"_type": "Image"}, "_type": "Sequence"}
    image = schema.field("images").type.value_type
    assert [field.name for field in image] == ["bytes", "path"]


def test_the_hubs_library_reads_a_list_of_images(table, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {"data_files": str(table), "cache_dir": str(tmp_path)}
    found = datasets.load_dataset("parquet", split="train", **files)
    assert found.features["images"] == datasets.Sequence(datasets.Image())
    read = [[np.asarray(image) for image in row["images"]] for row in found]
    rows = pq.read_table(table).to_pylist()
    for pages, row in zip(read, rows):
        assert all(np.array_equal(a, pixels(b)) for a, b in zip(pages, row["images"], strict=True))


def test_a_table_is_data_again_with_the_same_pages(table, jsonl):
    again = seen_by_the_model(table, page_from="image")
    for image, text in zip(again, seen_by_the_model(jsonl), strict=True):
        assert np.array_equal(image, np.broadcast_to(text, image.shape))  # an image is RGB


def test_the_number_of_threads_changes_no_byte(tmp_path, jsonl, table, small_parts):
    for workers in (1, 2, 5):
        assert draw(jsonl, tmp_path / f"{workers}.parquet", "--workers", workers) == 0
    one, two, five = ((tmp_path / f"{n}.parquet").read_bytes() for n in (1, 2, 5))
    assert one == two == five
    columns = pq.read_table(tmp_path / "1.parquet").to_pylist()
    assert columns == pq.read_table(table).to_pylist()  # nor does the size of the parts


def killed_amid(command: list[str], parts, enough: int) -> None:
    """Starts a command, and kills it when so many parts are written."""
    process = subprocess.Popen([sys.executable, "-c", SMALL_PARTS, *command])
    while process.poll() is None and len(list(parts.glob("*.parquet"))) < enough:
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


SMALL_PARTS = """
import sys
from deepsynth_min import render
from deepsynth_min.publish import page_table
page_table.PART_ROWS = 5
sys.exit(render.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_file(tmp_path, small_parts, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    texts = [f"Row {n}. " + "The lamp was sold on Monday. " * (n % 9 + 1) for n in range(300)]
    rows.write_text("".join(json.dumps({"text": t, "summary": "A lamp."}) + "\n" for t in texts))
    # The killed processes do not go through conftest.py, which hides the fonts of extras.
    to, mode = tmp_path / "a.parquet", ["--mode", "1024", "--no-extra-fonts"]
    for enough in (3, 20):
        command = [*TINY, "--data", str(rows), "--to", str(to), *mode]
        killed_amid(command, tmp_path / "a.parquet.parts", enough)
        assert not to.exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "a.parquet.parts").glob("*.par*")}
    drawn = []
    entry = page_table.PageTable._entry
    monkeypatch.setattr(
        page_table.PageTable, "_entry", lambda s, r, i: drawn.append(i) or entry(s, r, i)
    )
    assert draw(rows, to, *mode) == 0
    whole = [path for path in kept if path.suffix == ".parquet"]
    assert len(whole) >= 20 and len(drawn) == 300 - 5 * len(whole)  # those are not drawn again
    assert draw(rows, tmp_path / "b.parquet", *mode) == 0
    assert to.read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert not (tmp_path / "a.parquet.parts").exists()


def test_parts_of_other_settings_are_not_gone_on_with(tmp_path, jsonl, capsys):
    to, parts = tmp_path / "a.parquet", tmp_path / "a.parquet.parts"
    parts.mkdir()
    (parts / "plan.json").write_text("{}")
    assert draw(jsonl, to) == 2
    assert "parts of other rows or settings; --force removes them" in capsys.readouterr().err
    assert draw(jsonl, to, "--force") == 0 and not parts.exists()
    assert draw(jsonl, to) == 2
    assert "a.parquet: exists; --force overwrites" in capsys.readouterr().err


def test_a_large_table_is_divided_in_order(tmp_path, jsonl, table, small_parts, monkeypatch):
    smaller = page_table.PageTable
    monkeypatch.setattr(
        render,
        "PageTable",
        lambda *a: smaller(*a[:4], a[4] // 25),  # 40 kB in place of 1 MB
    )
    assert draw(jsonl, tmp_path / "a.parquet", "--file-mb", 1) == 0
    files = sorted(tmp_path.glob("*.parquet"))
    n = len(files)
    assert n > 1
    assert [file.name for file in files] == [f"a-{k:05}-of-{n:05}.parquet" for k in range(n)]
    rows = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert rows == pq.read_table(table).to_pylist()


BAD = [
    {"text": "one", "summary": "1", "instruction": "Count."},
    {"text": "字", "summary": "2"},  # no embedded font has it
    {"text": "three", "summary": "3"},
]


def rows_file(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def bad_rows(tmp_path):
    return rows_file(tmp_path, [BAD[0], {**BAD[1], "text": "\x01"}, BAD[2]])


def test_a_bad_row_stops_it_or_is_left_out_and_listed(tmp_path, bad_rows, capsys):
    to, strict = tmp_path / "a.parquet", ["--on-missing", "error"]
    assert draw(bad_rows, to, *strict) == 2
    assert "rows.jsonl:2: text 0: no font has 1 character," in capsys.readouterr().err
    skip = [*strict, "--on-bad-row", "skip", "--force"]
    assert draw(bad_rows, to, *skip) == 2
    assert "1 of 3 rows cannot be used, more than --max-bad 0.01" in capsys.readouterr().err
    assert draw(bad_rows, to, *skip, "--max-bad", "0.5") == 0
    rows = pq.read_table(to).to_pylist()
    assert [row["summary"] for row in rows] == ["1", "3"]
    assert [row["instruction"] for row in rows] == ["Count.", None]
    assert "rows.jsonl:2: text 0" in (tmp_path / "a.parquet.left-out.txt").read_text()


def test_pages_of_another_size_are_no_squares(tmp_path, jsonl):
    more = words("--width 320 --height 200 --limit 3 --max-pages 0 --overflow error")
    assert draw(jsonl, tmp_path / "a.parquet", *more) == 0
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert len(rows) == 3 and len(rows[0]["images"]) > 1
    assert {pixels(image).shape for row in rows for image in row["images"]} == {(200, 320)}


def test_coloured_pages_stay_coloured(tmp_path):
    Image.new("RGB", (40, 30), (250, 10, 90)).save(tmp_path / "a.png")
    rows = rows_file(tmp_path, [{"image": "a.png", "summary": "pink"}] * 2)
    assert draw(rows, tmp_path / "a.parquet") == 0
    found = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert_same_pages(found, seen_by_the_model(rows))
    assert pixels(found[0]["images"][0]).shape == (256, 256, 3) and found[0]["text"] is None


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--mode gundam", "--mode gundam: its pages are views with tiles"),
        ("--width 100", "--width, --height: give both"),
        ("--workers -1", "--workers: -1 is below 0"),
        ("--val-samples 3", "unknown setting --val-samples"),
        ("--to pages.txt", "--to pages.txt: the name must end in .parquet"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, jsonl, capsys, more, said):
    assert draw(jsonl, tmp_path / "a.parquet", *more.split()) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_a_weight_is_refused_since_every_row_comes_once(tmp_path, jsonl, capsys):
    assert draw(f"{jsonl}:0.5", tmp_path / "a.parquet") == 2
    assert "a weight is for training" in capsys.readouterr().err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path):
    texts = [f"Row {n}. " + "The lamp was sold on Monday. " * 20 for n in range(6000)]
    rows = rows_file(tmp_path, [{"text": text, "summary": "A lamp."} for text in texts])
    measured = []
    for limit in (1000, 6000):
        assert draw(rows, tmp_path / f"{limit}.parquet", "--limit", limit) == 0
        measured.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    assert measured[1] - measured[0] < 20, measured  # MiB; the pages of 5,000 rows are far more


def test_a_pages_png_holds_colour_and_grey():
    page = render_pages("grey").pages[0]
    assert np.array_equal(pixels({"bytes": page_table.png(page)}), page)
    colour = np.random.default_rng(0).integers(0, 256, (3, 5, 7), np.uint8)
    read = pixels({"bytes": page_table.png(colour)})
    assert np.array_equal(read.transpose(2, 0, 1), colour)
