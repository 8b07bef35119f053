"""The report, read as a browser reads it: parsed, not compared with itself."""

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from deepsynth_min import report, settings as S
from deepsynth_min.options import change, to_toml
from deepsynth_min.pages.png import png
from deepsynth_min.reports.charts import MAX_POINTS, chart, ticks
from deepsynth_min.reports.page import page as render_report

VOID = {"meta", "input", "img", "br"}


class Page(HTMLParser):
    """Elements with their attributes and text; fails where tags do not close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        inside = [e["tag"] for e in self.open]
        element = {"tag": tag, "inside": inside, "text": "", **dict(attributes)}
        self.found.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def texts(self, tag: str) -> list[str]:
        return [e["text"] for e in self.found if e["tag"] == tag]


def make_run(path: Path, loss: float, **settings) -> Path:
    """A run directory with three logging steps, two evaluations and a page."""
    (path / "pages").mkdir(parents=True)
    lines = [{"kind": "eval", "step": 0, "loss": 9.0, "reads/shuffled": 0.0, "cer": 1.0}]
    for step in (10, 20, 30):
        lines.append(
            {
                "kind": "train",
                "step": step,
                "samples": 60 * step,
                "loss": loss + 1 / step,
                "lr": 1e-3,
                "grad_norm": math.nan if step == 20 else 1.0,
                "samples_per_s": 10.0 if step == 10 else 5.0,
                "peak_memory_bytes": 2**30,
            }
        )
    lines.append(
        {
            "kind": "eval",
            "step": 30,
            "loss": loss,
            "reads/shuffled": 0.001,
            "reads/text": -0.25,
            "cer": 0.5,
            "rougeL": 0.25,
        }
    )
    shown = [{"row": "val 0", "reference": "<b>Tea & cake</b>", "answer": "<script>alert(1)"}]
    lines.append({"kind": "answers", "step": 30, "shown": shown})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "config.toml").write_text(to_toml(change(S.Settings(), **settings)), "utf-8")
    image = np.full((8, 8), 255, np.uint8)
    (path / "pages" / "held-out-0.png").write_bytes(png(image))
    return path


@pytest.fixture
def one(tmp_path) -> Path:
    return make_run(tmp_path / "one", 4.0)


def test_the_page_is_well_formed_and_needs_nothing_from_outside(one):
    text = render_report(one)
    page = Page(text)
    assert not [e for e in page.found if e["tag"] in ("script", "link", "iframe", "object")]
    sources = [v for e in page.found for k, v in e.items() if k in ("src", "href", "srcset")]
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?:", text)
    image = base64.b64decode(sources[0].split(",")[1])
    assert image == (one / "pages" / "held-out-0.png").read_bytes()
    assert "prefers-color-scheme: dark" in text


def test_each_value_can_be_read_by_pointing_at_it_over_steps_and_over_time(one):
    titles = Page(render_report(one)).texts("title")
    for expected in (
        "training, step 10: 4.1",
        "training, step 30: 4.0333",
        "held out, step 30: 4",
        "another page, step 30: 0.001",
        "mean over answers, step 30: 0.5",
        "ROUGE-L of answers, step 30: 0.25",  # a curve alone has the chart's name
        "Learning rate, step 10: 0.001",
        # 600 samples at 10 a second, then 600 and 600 at 5: a minute, three, five
        "training, minutes 1: 4.1",
        "training, minutes 3: 4.05",
        "training, minutes 5: 4.0333",
        "held out, minutes 5: 4",
    ):
        assert expected in titles
    assert not [title for title in titles if "nan" in title or title.startswith(",")]


def test_a_model_that_does_not_read_is_called_so_and_bars_go_both_ways(one):
    page = Page(render_report(one))
    assert any("does not read the page" in text for text in page.texts("p"))
    bars = [e for e in page.found if e["tag"] == "rect"]
    zero = float(next(e["x1"] for e in page.found if e["tag"] == "line" and e.get("y1") == "0"))
    ends = [(float(e["x"]), float(e["x"]) + float(e["width"])) for e in bars]
    assert (
        len(bars) == 2
        and ends[0][0] == pytest.approx(zero, abs=0.2)
        and ends[1][1] == (pytest.approx(zero, abs=0.2))
    )  # shuffled: +0.001 to the right; text: -0.25 to the left


def test_an_interval_is_a_band_and_in_the_table_and_the_best_is_named(one):
    first = {"kind": "eval", "step": 10, "loss": 3.0, "cer": 0.7, "cer_low": 0.5, "cer_high": 0.9}
    last = {**first, "step": 40, "loss": 3.5, "cer": 0.6, "cer_low": 0.45}
    with open(one / "metrics.jsonl", "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in (first, last))
    (one / "best").write_text("step-000010\n")
    text = render_report(one)
    page = Page(text)
    assert [e for e in page.found if e["tag"] == "polygon" and "band" in e["class"]]
    assert "best 3.0000 at step 10: checkpoints/step-000010 (--checkpoint best)" in text
    rows = [e["text"] for e in page.found if e["tag"] == "tr"]
    assert any(row.startswith("cerchar") and "0.60.45 to 0.90.70.5 to 0.9" in row for row in rows)
    assert not any(row.startswith("cer_low") for row in rows)
    assert rows[0] == "step 40 (last)step 10 (best by loss)"


def test_several_runs_share_the_charts_and_only_their_differences_are_set_side_by_side(
    one, tmp_path
):
    two = make_run(tmp_path / "two", 3.0, lr=0.5)
    page = Page(render_report(one, two))
    titles = page.texts("title")
    assert "one, held out, step 30: 4" in titles and "two, held out, step 30: 3" in titles
    rows = [e["text"] for e in page.found if e["tag"] == "tr"]
    assert [row for row in rows if row.startswith("optim.")] == ["optim.lr0.00.5"]


def test_a_point_stands_where_its_value_is():
    text = chart("Line", [("c0", "y", [(0.0, 0.0), (5.0, 5.0), (10.0, 10.0)])], "step")
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", text)[0])
    spots = [
        (float(c.get("cx")), float(c.get("cy")))
        for c in svg.iter("circle")
        if c.get("class") == "seen"
    ]
    (x0, y0), (x1, y1), (x2, y2) = spots
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert x0 < x2 and y0 > y2  # up is more


def test_long_series_are_thinned_and_keep_their_end():
    text = chart("Long", [("c0", "y", [(float(i), 1.0) for i in range(10_001)])], "step")
    titles = re.findall(r"<title>(.*?)</title>", text)
    assert len(titles) <= MAX_POINTS and titles[-1].startswith("y, step 10000")


@pytest.mark.parametrize("low, high", [(0, 1), (-3, 7), (1e-6, 2e-6), (0, 123456), (8.29, 8.31)])
def test_ticks_are_round_evenly_apart_and_inside(low, high):
    found = ticks(low, high)
    gaps = {float(f"{b - a:.6g}") for a, b in zip(found, found[1:])}
    assert 2 <= len(found) <= 6 and len(gaps) == 1 and f"{gaps.pop():e}"[0] in "125"
    assert low - 1e-9 <= found[0] and found[-1] <= high * (1 + 1e-9)


def test_an_empty_or_torn_run_still_has_a_report(tmp_path, capsys):
    run = tmp_path / "new"
    run.mkdir()
    assert Page(render_report(run)).texts("h1") == ["new"]
    (run / "metrics.jsonl").write_text('{"kind": "eval", "step": 0, "loss": 5.0}\n{"kind": "tra')
    assert "5.0000 at step 0" in render_report(run)


def test_the_command_writes_one_file_and_names_mistakes(one, tmp_path, capsys):
    assert report.main([str(one)]) == 0
    assert (one / "report.html").read_text("utf-8") == render_report(one)
    assert report.main([str(one), str(one), "--out", str(tmp_path / "both.html")]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(one / "report.html"), str(tmp_path / "both.html")]
    for arguments, message in (
        (["/no/such"], "/no/such: not a run directory"),
        ([], "RUN"),
        ([str(one), "--out", "/no/such/x.html"], "No such file"),
    ):
        assert report.main(arguments) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and message in lines[0]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.jsonl", '{"kind": "eval", "step": 0, "loss": null}'),
        ("metrics.jsonl", '{"kind": "eval", "step": 0, "loss": 1%s}' % ("0" * 400)),
        ("metrics.jsonl", '{"kind": "eval", "step": 0}'),
        ("metrics.jsonl", '{"kind": "train", "step": 1, "samples": null, "samples_per_s": 1}'),
        ("metrics.jsonl", '{"kind": "answers", "step": 1, "shown": 5}'),
        ("config.toml", "evaluation = 5"),
        ("config.toml", "[started]\nfiles = 5"),
        ("config.toml", "a = " + "[" * 10_000),
    ],
)
def test_a_run_that_was_damaged_is_told_in_one_line(one, tmp_path, capsys, file, text):
    bad = make_run(tmp_path / "bad", 1.0)
    with open(bad / file, "w" if file == "config.toml" else "a") as opened:
        opened.write(text + "\n")
    out = str(tmp_path / "both.html")
    assert report.main([str(one), str(bad), "--out", out]) in (0, 2)  # what can be left out is
    lines = capsys.readouterr().err.splitlines()
    assert not lines or len(lines) == 1 and f"{bad}: damaged metrics or settings" in lines[0]


def test_the_names_of_settings_are_only_shown(one, tmp_path):
    bad = make_run(tmp_path / "bad", 1.0)
    (bad / "config.toml").write_text('["<img src=x>"]\na = 1\n')
    assert "<img src=x>" not in render_report(one, bad)


def test_a_file_of_the_users_is_not_replaced_by_the_report(tmp_path, capsys):
    run, notes = make_run(tmp_path / "a", 2.0), tmp_path / "notes.txt"
    notes.write_text("mine")
    assert report.main([str(run), "--out", str(notes)]) == 2
    assert "exists, and is no page of this command" in capsys.readouterr().err
    assert notes.read_text() == "mine"
    assert report.main([str(run)]) == 0 and report.main([str(run)]) == 0
