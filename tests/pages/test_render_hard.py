"""Hard inputs: whatever the text and the page, each character is drawn, reported or refused."""

import time

import numpy as np
import pytest
from reference_renderer import ReferenceRenderer, composite, embedded

from deepsynth_min.pages.renderer import PageStyle, Renderer, render_batch, render_pages

SMALL = PageStyle(width=120, height=60, margin=4, font_size=12)


def tiled(ranges, length):
    """Do the ranges, one after another, cover the text?"""
    flat = [0, *ranges.reshape(-1).tolist(), length]
    return flat[::2] == flat[1::2] and all(a <= b for a, b in ranges.tolist())


def equals_reference(text, style):
    pages, ranges = ReferenceRenderer(style).render(text)
    got = render_pages(text, style)
    return got.ranges.tolist() == ranges and np.array_equal(got.pages, pages)


def font_file(folder, name):
    path = folder / f"{name}.ttf"
    path.write_bytes(embedded(name))
    return str(path)


def width_of(text, style):
    """Pixels that a line of text needs, from the reference."""
    return (ReferenceRenderer(style).pens(text)[-1] + 63) // 64


def test_empty_text_is_one_blank_page():
    pages = render_pages("", SMALL)
    assert pages.pages.shape == (1, 60, 120) and pages.pages.min() == 255
    assert pages.ranges.tolist() == [[0, 0]] and pages.truncated == 0


@pytest.mark.parametrize("text", [" ", " " * 5000, "\t" * 900, "\u3000 \u2003" * 70, "\u200b" * 9])
def test_only_spaces_are_one_blank_page(text):
    pages = render_pages(text, SMALL)
    assert len(pages) == 1 and pages.pages.min() == 255 and tiled(pages.ranges, len(text))


@pytest.mark.parametrize("unit", ["x", "字", "𝒳", "\u0301", "e\u0323", "\u00a0"])
def test_a_megabyte_without_a_break_is_split_in_linear_time(unit):
    text = unit * (1_000_000 // len(unit.encode()))
    style = PageStyle(width=512, height=512, font_size=8, margin=4)
    started = time.perf_counter()
    pages = render_pages(text, style)
    assert time.perf_counter() - started < 30  # a quadratic wrap takes hours
    assert tiled(pages.ranges, len(text))


def test_a_line_exactly_at_the_limit_fits_and_one_pixel_less_wraps():
    text = "exactly one line"
    need = width_of(text, SMALL)
    for slack, lines in ((1, 1), (0, 1), (-1, 2)):
        style = PageStyle(width=need + 8 + slack, height=60, margin=4, font_size=12)
        one_line_pages = PageStyle(width=need + 8 + slack, height=24, margin=4, font_size=12)
        assert len(render_pages(text, one_line_pages)) == lines
        assert equals_reference(text, style)


def test_trailing_space_hangs_over_the_limit():
    need = width_of("word word", SMALL)
    style = PageStyle(width=need + 8, height=24, margin=4, font_size=12)
    assert render_pages("word word" + " " * 50 + "word", style).ranges.tolist() == [
        [0, 59],
        [59, 63],
    ]


def test_a_word_wider_than_the_page_is_split_between_characters():
    text = "a " + "incomprehensibilities" * 3 + " b"
    assert equals_reference(text, SMALL)
    ink = sum(int((255 - page.astype(int)).sum()) for page in render_pages(text, SMALL).pages)
    assert ink == sum(
        int(ReferenceRenderer(SMALL).glyph(char)[0].sum()) for char in text
    )  # nothing is lost


@pytest.mark.parametrize("width", [1, 2, 5, 9])
def test_a_glyph_wider_than_the_page_takes_its_own_line(width):
    style = PageStyle(width=width, height=30, margin=0, font_size=20)
    text = "WMW i W"
    assert equals_reference(text, style)
    pages = render_pages(text, style)
    assert tiled(pages.ranges, len(text)) and pages.clipped >= 3


CONTROLS = (
    "a\x00b\x01c\td\re\r\nf\x0bg\x0ch\x1bi\x7fj\x85k\xa0l\xadm\u200bn\u200do\u2028p\u2029q\ufe0fr"
    "\ufeff"
)


def test_every_control_is_drawn_reported_or_a_line_end():
    pages = render_pages(CONTROLS, PageStyle(width=300, height=400))
    assert tiled(pages.ranges, len(CONTROLS))
    boxes = {CONTROLS[i] for i in pages.missing}
    assert boxes == {"\x00", "\x01", "\x1b", "\x7f"}
    assert {CONTROLS[i] for i in pages.invisible} == {
        "\xad",
        "\u200b",
        "\u200d",
        "\ufe0f",
        "\ufeff",
    }
    assert len(pages) == 2  # the form feed


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n", "\x0b", "\x85", "\u2028", "\u2029"])
def test_each_line_end_is_one_line_end(end):
    a, b = (render_pages(f"one{e}{e}two", SMALL).pages for e in (end, "\n"))
    assert np.array_equal(a, b)


def test_lone_surrogates_are_boxes():
    text = "a\ud800b\udfffc\ud83d\ude00d"
    pages = render_pages(text, PageStyle(width=200, height=40))
    assert pages.missing.tolist() == [1, 3, 5, 6]


def test_astral_characters_without_a_glyph_are_boxes_and_with_one_are_drawn():
    text = "x\U0001d4b3y\U0010fffdz\U000e0041"  # script X (maths), private use, a tag (invisible)
    pages = render_pages(text, PageStyle(width=200, height=40))
    assert pages.missing.tolist() == [3] and pages.invisible.tolist() == [5]


def test_cjk_in_a_latin_font_is_boxes_and_an_em_wide():
    pages = render_pages("中文", PageStyle(width=200, height=40, margin=4, font_size=20))
    columns = np.flatnonzero((pages.pages[0] == 0).any(0))
    assert pages.missing.tolist() == [0, 1] and columns.min() == 5 and columns.max() == 4 + 39 - 1


@pytest.mark.parametrize(
    "text", ["ẤỒỂẮ Ǻ", "A\u0302\u0301O\u0302\u0300", "é e\u0301 x\u0302\u0301"]
)
def test_accents_on_the_first_line_at_margin_0_are_not_cut(text):
    style = PageStyle(width=200, height=60, margin=0, font_size=24)
    pages = render_pages(text, style)
    lower = render_pages(
        text, PageStyle(width=200, height=90, margin=0, margin_top=30, font_size=24)
    )
    assert pages.clipped == 0 and len(pages.missing) == 0
    assert np.array_equal(pages.pages[0][:60], lower.pages[0][30:])


@pytest.mark.parametrize("name", ["notosit", "notos"])
@pytest.mark.parametrize("text", ["j", "f", "fj jf", "jjjj ffff", "ƒ ʄ", "Àf"])
def test_bearings_beyond_every_edge_are_clipped_exactly(tmp_path, name, text):
    for width, height in ((64, 64), (40, 20), (17, 99), (33, 70)):
        style = PageStyle(
            width=width, height=height, margin=0, font_size=64, main_font=font_file(tmp_path, name)
        )
        assert equals_reference(text, style), (width, height)


def test_overlapping_lines_clear_nothing(tmp_path):
    """Line boxes that overlap: each glyph's ink is multiplied into what was there."""
    for line_height in (0.1, 0.3, 0.6, 0.9):
        style = PageStyle(
            width=150,
            height=120,
            margin=10,
            font_size=24,
            line_height=line_height,
            main_font=font_file(tmp_path, "notosit"),
        )
        assert equals_reference("Ågjpq|()\nÅfffg\n|||ÅÅÅ\ngjÄÖÜ" * 2, style)


def test_one_character_changes_the_strs_kind_and_nothing_else():
    style = PageStyle(width=300, height=80)
    base = "plain words, drawn the same from each kind of str: "
    alone = render_pages(base, style)
    for last in ("a", "é", "Ω", "中", "😀"):  # 1-, 1-, 2-, 2- and 4-byte strs
        changed = render_pages(base + "\f" + last, style)
        assert np.array_equal(changed.pages[0], alone.pages[0])


@pytest.mark.parametrize(
    "out, why",
    [
        (np.zeros((2, 60, 120), np.float32), "dtype"),
        (np.zeros((2, 60, 120), np.int8), "dtype"),
        (np.zeros((2, 60, 240), np.uint8)[:, :, ::2], "contiguous"),
        (np.zeros((2, 120, 60), np.uint8).transpose(0, 2, 1), "contiguous"),
        (np.zeros((2, 60, 120), np.uint8)[::-1], "contiguous"),
        (
            np.lib.stride_tricks.as_strided(np.zeros(9999, np.uint8), (2, 60, 120), (9, 120, 1)),
            "contiguous",
        ),
        (np.broadcast_to(np.uint8(0), (2, 60, 120)), "contiguous|read-only"),
        (np.frombuffer(bytes(2 * 60 * 120), np.uint8).reshape(2, 60, 120), "read-only"),
        (np.zeros((1, 60, 120), np.uint8), "shape"),
        (np.zeros((2, 61, 120), np.uint8), "shape"),
        (np.zeros((60, 120), np.uint8), "shape"),
        ([[0]], "array"),
    ],
)
def test_out_that_does_not_fit_is_refused_untouched(out, why):
    before = np.array(out)
    with pytest.raises(ValueError, match=f"out: .*({why})"):
        render_pages("one\ftwo", SMALL, out=out)
    assert np.array_equal(np.array(out), before)


def test_out_may_be_larger_and_hold_anything():
    out = np.random.default_rng(0).integers(0, 256, (5, 60, 120), np.uint8)
    rest = out[2:].copy()
    pages = render_pages("one\ftwo", SMALL, out=out)
    assert np.shares_memory(pages.pages, out) and np.array_equal(out[2:], rest)
    assert np.array_equal(pages.pages, render_pages("one\ftwo", SMALL).pages)


@pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 47, 100, 333])
def test_widths_that_are_no_multiple_of_16(width):
    for margin in (0, 1):
        if width > 2 * margin:
            style = PageStyle(width=width, height=50, margin=margin, font_size=11)
            assert equals_reference("Fluffy wolves jump.\nOver it", style)


def test_a_page_of_one_pixel():
    style = PageStyle(width=1, height=1, margin=0, font_size=9)
    pages = render_pages("abc d", style)
    assert pages.pages.shape == (4, 1, 1) and tiled(pages.ranges, 5)


@pytest.mark.parametrize("margin", [60, 61, 500])
def test_margins_that_leave_no_space_are_refused(margin):
    with pytest.raises(ValueError, match=f"margin: {margin}"):
        PageStyle(width=120, height=300, margin=margin)


def test_huge_glyphs_and_unusual_units_stay_inside_the_page():
    style = PageStyle(width=90, height=90, margin=0, font_size=1024)
    pages = render_pages("Wﷺ\u0301⸻", style)
    assert tiled(pages.ranges, 4) and pages.clipped >= 1


def test_a_cluster_is_its_glyphs_composited_in_order():
    style = PageStyle(width=60, height=60, margin=10, font_size=20, shaping="off")
    reference, renderer = ReferenceRenderer(style), Renderer(style)
    got = renderer.render_pages("q\u0303").pages[0]
    base, mark = reference.glyph("q"), reference.glyph("\u0303")
    width = mark[0].shape[1]
    x = round(base[1] + base[0].shape[1] / 2 - width / 2)
    lift = max(0, base[2] + 1 - (mark[2] - len(mark[0])))
    expected = np.full((60, 60), 255, np.uint8)
    composite(expected, base[0], 10 + base[1], 10 + reference.up - base[2])
    composite(expected, mark[0], 10 + x, 10 + reference.up - mark[2] - lift)
    assert np.array_equal(got, expected)


def test_towers_of_marks_stand_on_blanks_and_none_is_dropped():
    style = PageStyle(width=400, height=400, margin=150, font_size=10, shaping="off")
    ink = [
        int((255 - render_pages("q" + "\u0307" * n, style).pages.astype(int)).sum())
        for n in (0, 1, 30, 31, 60)
    ]
    dot = ink[1] - ink[0]
    assert ink[2] == ink[0] + 30 * dot and ink[3] > ink[2] and ink[4] > ink[3]


def test_texts_that_are_not_str_are_refused():
    for bad in (b"bytes", None, 3):
        with pytest.raises(ValueError, match="str"):
            render_batch(["fine", bad], SMALL)


def test_a_font_file_that_is_none_is_refused(tmp_path):
    (tmp_path / "x.ttf").write_bytes(b"not a font at all")
    for name in (str(tmp_path / "x.ttf"), str(tmp_path / "none.ttf")):
        with pytest.raises(ValueError, match="font: .*ttf"):
            render_pages("中", PageStyle(fonts=(name,)))
