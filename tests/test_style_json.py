"""Glyph's rendering settings: what they become here, and what is said to be left out."""

import json

import numpy as np
import pytest
from PIL import Image

from deepsynth_min import command_line, render
from deepsynth_min.errors import UserError
from deepsynth_min.pages.style import PageStyle
from deepsynth_min.style_json import read

# As published, but for the font file.
PUBLISHED = {
    "page-size": "595,842",
    "dpi": 72,
    "margin-x": 10,
    "margin-y": 10,
    "font-size": 9,
    "line-height": 10,
    "font-color": "#000000",
    "alignment": "LEFT",
    "horizontal-scale": 1.0,
    "first-line-indent": 0,
    "left-indent": 0,
    "right-indent": 0,
    "space-before": 0,
    "space-after": 0,
    "border-width": 0,
    "border-padding": 0,
    "page-bg-color": "#FFFFFF",
    "para-bg-color": "#FFFFFF",
    "auto-crop-width": True,
    "auto-crop-last-page": True,
    "newline-markup": '<font color="#FF0000"> \\n </font>',
}


@pytest.fixture
def written(tmp_path):
    def write(**changes) -> str:
        given = PUBLISHED | {name.replace("_", "-"): value for name, value in changes.items()}
        (tmp_path / "config.json").write_text(json.dumps(given), "utf-8")
        return str(tmp_path / "config.json")

    return write


def test_the_published_settings_are_a_page_style(written):
    values, notes = read(written())
    style = PageStyle(**values)
    assert (style.width, style.height, style.margins()) == (595, 842, (10, 10, 10, 10))
    assert (style.font_size, style.line_height * style.font_size) == (9, pytest.approx(10, 1e-3))
    assert (style.align, style.greys(), style.crop_last) == ("left", (0, 255), True)
    assert style.newline_mark == " \\n "
    assert notes == ["auto-crop-width: pages keep their width"]


def test_points_become_pixels_by_dpi(written):
    values, _ = read(written(dpi=144))
    assert (values["width"], values["font_size"], values["margin_top"]) == (1190, 18, 20)


def test_what_is_squeezed_is_squeezed_with_its_margins_and_letters(written):
    values, _ = read(written(horizontal_scale=0.5))
    assert (values["width"], values["height"]) == (298, 842)
    assert (values["margin_left"], values["margin_top"]) == (5, 10)
    assert values["horizontal_scale"] == 0.5


@pytest.mark.parametrize(
    "first, left, found", [(12, 8, (18, 12, 0)), (-6, 8, (12, 0, 6)), (0, 8, (18, 0, 0))]
)
def test_indents_are_those_of_first_lines_or_of_the_others(written, first, left, found):
    style = PageStyle(**read(written(first_line_indent=first, left_indent=left))[0])
    assert (style.margin_left, style.first_indent, style.hanging_indent) == found


def test_colours_become_the_greys_that_they_look_like(written):
    values, notes = read(written(font_color="#FF0000", para_bg_color="#C8C8C8"))
    assert (values["ink"], values["paper"]) == (76, 200)
    assert "font-color: its grey is taken" in notes
    assert "page-bg-color: a page is of one grey, that of para-bg-color" in notes


def test_what_has_no_meaning_here_is_named(written):
    _, notes = read(written(space_after=3, border_width=1, swirl=7))
    assert {note.split(":")[0] for note in notes} == {
        "space-after",
        "border-width",
        "auto-crop-width",
        "swirl",
    }


WRONG = {
    "font-size": ("large", "'large' is not a number of points"),
    "page-size": ("595", "'595' is not WIDTH,HEIGHT in points"),
    "font-color": ("red", "'red' is not a colour #RRGGBB"),
    "alignment": ("TOP", "'TOP' is not LEFT, CENTER, RIGHT or JUSTIFY"),
    "dpi": (0, "dpi and horizontal-scale must be above 0"),
    "newline-markup": (5, "5 is not a text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_one_line_with_file_field_and_value(written, name):
    value, message = WRONG[name]
    path = written(**{name: value})
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"--style-json {path}") and message in text and "\n" not in text


@pytest.mark.parametrize("text", ["", "[1]", "{", "7"])
def test_a_file_that_is_no_json_object_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="not (JSON|a JSON object)"):
        read(str(tmp_path / "a.json"))


def test_a_run_takes_what_its_settings_have_and_the_command_line_wins(written, capsys):
    path = written(margin_y=12)
    settings = command_line.parse(["--style-json", path, "--font-size", "20"])
    page = settings.page
    assert (page.font_size, page.margin, page.crop_last) == (20, 10, True)
    said = capsys.readouterr().out
    assert "left out: page-size (595 x 842 px): --mode says how large a page is" in said
    assert "left out: margins other than 10 px" in said


def test_render_draws_in_that_style(written, tmp_path, capsys):
    (tmp_path / "text.txt").write_text("One line.\nAnother.\n", "utf-8")
    given = [str(tmp_path / "text.txt"), "--out", str(tmp_path / "pages")]
    assert render.main([*given, "--style-json", written(font_color="#404040")]) == 0
    assert "left out: auto-crop-width" in capsys.readouterr().out
    page = np.asarray(Image.open(tmp_path / "pages" / "page-0001.png"))
    assert page.shape[1] == 595 and page.shape[0] < 100 and 64 <= page.min() < 100
