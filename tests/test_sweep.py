"""The sweep: cells that are evaluations, done once, shown as a table and a plot."""

import json
from xml.etree import ElementTree

import pytest
from adapter_runs import write_base
from commands import words
from small_model import SMALL

from deepsynth_min import evaluate, sweep
from deepsynth_min.reports.sweep import page, table


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model, rows of one and of two lines, and a sweep over four cells."""
    folder = tmp_path_factory.mktemp("sweep")
    write_base(folder / "base", SMALL)
    texts = ["Four score and seven", "years ago our fathers brought forth\non this continent"]
    rows = [{"text": text * (1 + i), "summary": "a nation"} for i, text in enumerate(texts * 2)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sweep.main(given(folder)) == 0
    return folder


def given(folder, *more: str) -> list[str]:
    return [
        *words("--model {} --data {}", folder / "base", folder / "rows.jsonl"),
        *words("--modes 128 192 --font-sizes 8 16 --threads 1 --out {}", folder / "out"),
        *more,
    ]


def cells(folder) -> list[dict]:
    lines = (folder / "out" / "cells.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_there_is_a_cell_for_each_mode_and_font_size(folder):
    found = [(cell["mode"], cell["font_size"]) for cell in cells(folder)]
    assert found == [("128", 8), ("128", 16), ("192", 8), ("192", 16)]
    assert all(cell["samples"] == 4 and cell["seconds_per_page"] > 0 for cell in cells(folder))


def test_a_cell_has_the_figures_of_evaluate_with_its_settings(folder, capsys):
    asked = words("--model {} --data {} --read", folder / "base", folder / "rows.jsonl")
    capsys.readouterr()
    assert evaluate.main([*asked, *words("--mode 192 --font-size 16 --threads 1")]) == 0
    found, cell = json.loads(capsys.readouterr().out), cells(folder)[3]
    for name in ("loss", "cer", "precision", "compression", "characters_per_token", "pages"):
        assert cell[name] == pytest.approx(found[name], rel=1e-6), name


def test_the_answers_of_the_rows_are_scored_on_request(folder, tmp_path, capsys):
    asked = words("--model {} --data {}", folder / "base", folder / "rows.jsonl")
    out = words("--out {} --answers --max-new-tokens 4", tmp_path / "other")
    assert sweep.main([*asked, *out]) == 0
    capsys.readouterr()
    assert evaluate.main([*asked, *words("--max-new-tokens 4 --answer-samples 4")]) == 0
    found = json.loads(capsys.readouterr().out)
    (cell,) = map(json.loads, (tmp_path / "other" / "cells.jsonl").read_text().splitlines())
    assert cell["loss"] == pytest.approx(found["loss"], rel=1e-6)


def test_what_is_done_is_not_done_again_and_the_rest_is(folder, tmp_path, capsys):
    file = folder / "out" / "cells.jsonl"
    before = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text(before[0] + before[2] + before[3][:40], "utf-8")  # killed within a line
    assert sweep.main(given(folder)) == 0
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said if " of 4:" in line] == ["2 of 4", "4 of 4"]
    after = {(c["mode"], c["font_size"]): c["loss"] for c in cells(folder)}
    assert after == {(c["mode"], c["font_size"]): c["loss"] for c in map(json.loads, before)}


def test_another_model_has_cells_of_its_own(folder, tmp_path):
    file = folder / "out" / "cells.jsonl"
    write_base(tmp_path / "base", SMALL, seed=1)
    before = file.read_text("utf-8")
    asked = given(folder, "--modes", "128", "--font-sizes", "8")
    asked[asked.index("--model") + 1] = str(tmp_path / "base")
    assert sweep.main(asked) == 0
    losses = [cell["loss"] for cell in cells(folder)]
    assert len(losses) == 5 and losses[4] != losses[0]
    file.write_text(before, "utf-8")


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--modes 100", "--mode: '100' is neither"),
        ("--styles ink=400", "--styles ink=400: --ink: 400 is above 255"),
        ("--styles colour=1", "'colour=1' is no page setting"),
        ("--rows 0", "--rows 0: is below 1"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_the_first_cell(
    folder, tmp_path, capsys, option, complaint
):
    asked = words("--model {} --data {}", folder / "base", folder / "rows.jsonl")
    assert sweep.main([*asked, *words("--out {}", tmp_path / "new"), *option.split()]) == 2
    assert complaint in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_file_of_another_command_is_left_alone(folder, tmp_path, capsys):
    (tmp_path / "cells.jsonl").write_text('{"step": 1}\n')
    asked = words("--model {} --data {}", folder / "base", folder / "rows.jsonl")
    assert sweep.main([*asked, *words("--out {}", tmp_path)]) == 2
    assert "not what this command writes" in capsys.readouterr().err
    assert (tmp_path / "cells.jsonl").read_text() == '{"step": 1}\n'


def test_a_style_is_an_axis(folder, tmp_path):
    asked = words("--model {} --data {}", folder / "base", folder / "rows.jsonl")
    styles = ["--styles", "", "ink=90", "invert=true,margin=8"]
    assert sweep.main([*asked, *words("--rows 2 --out {}", tmp_path), *styles]) == 0
    lines = (tmp_path / "cells.jsonl").read_text().splitlines()
    assert [json.loads(line)["style"] for line in lines] == styles[1:]
    assert len({json.loads(line)["loss"] for line in lines}) == 3


def test_the_plot_has_a_line_for_each_mode_and_the_papers_two_points(folder):
    assert sweep.main(given(folder)) == 0  # all done; another test has written the page since
    text = (folder / "out" / "sweep.html").read_text("utf-8")
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    titles = [title.text for title in svg.iter("title")]
    assert "DeepSeek-OCR, as published, text tokens per visual token 10: 0.97" in titles
    assert "DeepSeek-OCR, as published, text tokens per visual token 20: 0.6" in titles
    assert len([title for title in titles if title.startswith(("128,", "192,"))]) == 4


def test_a_cell_in_which_no_row_fits_says_so():
    where = {"data": "a", "mode": "64", "font_size": 0, "style": ""}
    failed = [{**where, "error": "no held-out row can be used"}]
    assert "no held-out row can be used" in table(failed) and "<svg" not in page(failed, "m")
