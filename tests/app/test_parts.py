"""What the tabs of the app show and refuse, asked without a server."""

import base64
import io
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from deepsynth_min.app import parser, run as app
from deepsynth_min.app_parts.reading import Document, said, step
from deepsynth_min.data.row import Row
from deepsynth_min.data.tokenizer import encode
from deepsynth_min.errors import UserError
from deepsynth_min.evaluation.ablations import ablate
from deepsynth_min.runs.open_model import open_model

TEXT = "The mayor of Hull, Ada Kern, met 45 bakers."


def test_the_marked_place_is_where_the_attention_is():
    maps = np.zeros((2, 2, 3), np.float32)  # two tokens over 2 rows and 3 columns
    maps[0, 1, 2], maps[1, 0, 0] = 0.5, 0.25
    last = Document(None, None, None, ["a", "<b>"], "", ["PAGE"], [maps])
    said, looked = step(last, 1)
    assert said.startswith('<p class="said spoken"><b>a</b>&lt;b&gt;</p>')
    assert "50 % of its attention" in looked and "page 1, row 2, column 3" in looked
    painted = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]*)', looked)[1])))
    values = np.asarray(painted)  # [2, 3, RGB]
    assert (values[1, 2] < 255).any() and (values.reshape(6, 3)[:5] == 255).all()
    assert "25 % of its attention" in step(last, 9)[1]  # the last one, at most


def test_the_text_s_end_stands_in_the_page_s_place_token_for_token():
    opened = open_model(parser().parse_args(["--model=tiny-reader"]), {})
    row = Row("the text", "Hull.", TEXT * 3)
    sample, text = opened.builder(row), encode(opened.builder.tokenizer, row.text)
    assert len(text) > sample.visual > 0
    changed = ablate(sample, "tail", row, None, opened.builder)
    assert changed.ids == [sample.ids[0], *text[-sample.visual :], *sample.ids[1 + sample.visual :]]


def test_seven_runs_and_a_damaged_one_are_told_in_one_line(root, jobs):
    """Every few seconds, while the tab is looked at: where the report would be, not as an alarm."""
    (root / "bad").mkdir()
    (root / "bad" / "config.toml").write_text("= 1")
    (root / "bad" / "metrics.jsonl").write_text("")
    for names, why in ((["bad"] * 7, "choose one to six"), (["bad"], "bad"), (["gone"], "nothing")):
        told = jobs.report(names)
        assert why in told and 'role="alert"' in told and "\n" not in told
    shutil.rmtree(root / "bad")


def test_runs_are_listed_whatever_lies_beside_them(root, jobs):
    for name in ("a/b", "[b]*", "\udcff", "two\nlines", ".hidden/run", "too/deep/c"):
        (root / "kept" / name / "checkpoints").mkdir(parents=True)
        (root / "kept" / name / "config.toml").write_text("")
    (root / "kept" / "[b]*" / "status.json").write_text("[" * 100_000)
    (root / "config.toml").mkdir()
    _, _, (choices, _) = jobs.runs(None, (0, 0))
    assert {name for _, name in choices} == {"kept/a/b", "kept/[b]*"}
    shutil.rmtree(root / "kept")
    (root / "config.toml").rmdir()


def test_script_in_an_answer_is_only_shown():
    pieces = ["<script>", "alert(1)", "</script>"]
    assert "<script" not in said(pieces) + said(pieces, now=0)


@pytest.mark.parametrize("options", [["--host=0.0.0.0"], ["--host=10.0.0.1", "--password=short"]])
def test_other_machines_need_a_password(options):
    with pytest.raises(UserError, match="needs --password"):
        app(options)


def test_without_gradio_one_line_says_what_to_install(tmp_path):
    hidden = "import sys, deepsynth_min.train, deepsynth_min.generate; "
    hidden += "from deepsynth_min.app import main; "
    hidden += "assert not {'gradio', 'starlette'} & sys.modules.keys(); "  # of the page alone
    hidden += "sys.modules['gradio'] = None; "
    found = subprocess.run(
        [sys.executable, "-c", f"{hidden} sys.exit(main(['--root={tmp_path}']))"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 2
    assert found.stderr == "error: the page needs gradio: pip install 'deepsynth-min[app]'\n"
