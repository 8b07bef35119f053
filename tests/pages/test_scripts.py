"""What fonts and shaping lack is named with the command that mends it; installed extras mend it."""

import json
from pathlib import Path

import numpy as np
import pytest

from deepsynth_min import train
from deepsynth_min.pages.fonts.font_file import EMBEDDED, installed_fonts
from deepsynth_min.pages.renderer import render_pages
from deepsynth_min.pages.scripts import complaints, script_of
from deepsynth_min.pages.style import PageStyle

CASES = Path(__file__).parents[1] / "cases" / "scripts.jsonl"
TEXTS = [json.loads(line)["text"] for line in CASES.read_text("utf-8").splitlines()]
MENDS = {  # script -> what its line ends in, where nothing is installed
    **dict.fromkeys(
        ("Han", "Hiragana", "Katakana", "Hangul", "CJK signs", "full width"),
        "pip install 'deepsynth-min[cjk]' or --font FILE",
    ),
    "Bengali": "pip install 'deepsynth-min[scripts]' or --font FILE",
    "Tamil": "pip install 'deepsynth-min[scripts]' or --font FILE",
    "emoji": "pip install 'deepsynth-min[emoji]' or --font FILE",
}


def test_each_script_that_no_font_has_is_named_with_what_mends_it():
    lines = complaints(TEXTS, PageStyle())
    assert {line.split(":")[0] for line in lines} == set(MENDS)
    for line in lines:
        assert line.endswith(f": {MENDS[line.split(':')[0]]}"), line
    assert lines[0].startswith("Han: 25 characters no font has (")


def test_they_are_the_characters_that_the_renderer_reports():
    for text in [*TEXTS, "\x01\x02 plain", "שלום ก๊ e\u0301 \u200b\u00ad\ufe0f"]:
        for mode in ("auto", "off"):
            style = PageStyle(shaping=mode)
            pages = render_pages(text, style)
            lines = complaints([text], style)
            missing = {text[i] for i in pages.missing}
            told = sum(
                int(line.split(": ")[1].split()[0]) for line in lines if " no font has" in line
            )
            assert told == len(missing)
            unshaped = {text[i] for i in pages.unshaped}
            assert any("drawn without shaping" in line for line in lines) == bool(unshaped)


def test_without_the_libraries_of_shaping_their_extra_is_named(monkeypatch):
    monkeypatch.setattr(PageStyle, "shaper", lambda self: "")
    lines = complaints(["سلام"], PageStyle())
    assert len(lines) == 1
    assert lines[0].startswith("Arabic: 4 characters drawn without shaping (")
    assert lines[0].endswith(": pip install 'deepsynth-min[shaping]'")


def test_what_no_extra_mends_is_said_too():
    lines = complaints(["\x01 \ue000 ⴰ"], PageStyle())
    assert sorted(lines) == [
        "Tifinagh: 1 character no font has (ⴰ): --font FILE, such as one of the Noto fonts",
        "control characters: 1 character no font has (U+0001): take them out of the texts: no font "
        "has them",
        "private use: 1 character no font has (U+E000): --font FILE: the font that the text was "
        "made with",
    ]


def test_plain_text_has_nothing_to_mend():
    assert complaints(["Plain, “quoted” – naïve Ελλάδα Россия ∑ → ★ سلام\n\t"], PageStyle()) == []


@pytest.mark.parametrize(
    ("char", "script"),
    [("字", "Han"), ("か", "Hiragana"), ("ｱ", "Katakana"), ("한", "Hangul"), ("Ａ", "full width")]
    + [("㈱", "CJK signs"), ("、", "CJK signs"), ("🪑", "emoji"), ("🌡", "emoji"), ("🇩", "emoji")]
    + [
        ("த", "Tamil"),
        ("।", "Devanagari"),
        ("€", "symbols"),
        ("ⴰ", "Tifinagh"),
        ("\ue000", "private use"),
    ]
    + [("\x01", "control characters"), ("\ud800", "halves of characters")]
    + [("\U000e0fff", "unassigned")],
)
def test_scripts_have_the_names_that_people_know(char, script):
    assert script_of(char) == script


# -- before training -------------------------------------------------------------------------------

TRAIN = (
    "--model tiny --tune decoder --val-samples 2 --answer-samples 0 --ablation-samples 0".split()
)


def run(tmp_path, *more):
    where = ["--data", str(CASES), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    return train.main([*TRAIN, *where, "--device", "cpu", *more])


def test_training_warns_of_what_its_rows_lack(tmp_path, capsys):
    assert run(tmp_path) == 0
    error = capsys.readouterr().err
    assert "warning: Han: 25 characters no font has" in error
    assert "warning: Tamil: 15 characters no font has" in error


def test_with_on_missing_error_it_ends_before_training(tmp_path, capsys):
    assert run(tmp_path, "--on-missing", "error") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: --on-missing error: Han: 25 characters no font has")
    assert "pip install 'deepsynth-min[cjk]'" in last and not (tmp_path / "run").exists()


# -- installed extras ------------------------------------------------------------------------------


def test_installed_fonts_join_the_chain_after_what_the_user_named(extra_fonts):
    found = installed_fonts()
    assert len(found) == 22
    assert PageStyle(main_font="a", fonts=("b",)).sources() == ("a", *EMBEDDED, "b", *found)
    assert PageStyle(extra_fonts=False).sources() == EMBEDDED


def test_they_draw_every_script_of_the_cases(extra_fonts):
    assert complaints(TEXTS, PageStyle()) == []
    for text in TEXTS:
        pages = render_pages(text, PageStyle(width=640, height=320, font_size=20))
        assert not len(pages.missing) and not len(pages.unshaped) and not pages.clipped


def test_they_are_part_of_the_pages_identity(extra_fonts):
    with_them, without = PageStyle(), PageStyle(extra_fonts=False)
    assert with_them.fingerprint() != without.fingerprint()


def test_they_change_no_page_that_the_embedded_fonts_draw_whole(extra_fonts):
    text = "Plain text, café, Ελλάδα, Россия, ∑ → ★, سلام שלום ไทย नमस्ते."
    with_them, without = (render_pages(text, PageStyle(extra_fonts=e)) for e in (True, False))
    assert not len(without.missing)
    assert np.array_equal(with_them.pages, without.pages)


def test_left_out_fonts_are_named_as_what_mends(extra_fonts):
    lines = complaints(["字"], PageStyle(extra_fonts=False))
    assert lines == ["Han: 1 character no font has (字): --extra-fonts or --font FILE"]
