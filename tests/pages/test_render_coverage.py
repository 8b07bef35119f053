"""Which glyph stands for which character: fallback, boxes, marks, scripts that need shaping."""

import unicodedata

import numpy as np
import pytest
from reference_renderer import ReferenceRenderer, composite, embedded

from deepsynth_min.pages.renderer import PageStyle, render_pages

LINE = PageStyle(width=400, height=60, font_size=20)
LATIN = [chr(c) for c in range(0x21, 0x250) if chr(c).isprintable() and c != 0xAD]


def same(a, b, style=LINE):
    return np.array_equal(render_pages(a, style).pages, render_pages(b, style).pages)


def test_the_embedded_default_covers_latin_greek_cyrillic_maths_and_symbols():
    text = "".join(LATIN) + "αβγδωΩ" + "абвгдяЯ" + "∀∑∫√≠≤∞⇒" + "☃★♞⚑✂" + "𝒳𝔸" + "ქართული"
    assert len(render_pages(text, LINE).missing) == 0


def test_each_character_comes_from_the_first_font_that_has_it(tmp_path):
    path = tmp_path / "mono.ttf"
    path.write_bytes(embedded("spacemo"))
    assert same("abc", "abc", PageStyle(fonts=(str(path),)))
    last = PageStyle(width=400, height=60, font_size=20, fonts=(str(path),))
    first = PageStyle(width=400, height=60, font_size=20, main_font=str(path))
    assert same("abc", "abc", last) and np.array_equal(
        render_pages("abc", last).pages, render_pages("abc", LINE).pages
    )
    for style in (first, last):
        assert np.array_equal(
            ReferenceRenderer(style).render("abc ★ é")[0], render_pages("abc ★ é", style).pages
        )


def test_missing_glyphs_are_boxes_counted_with_their_positions():
    text = "a中b文c\ue000d" * 3
    pages = render_pages(text, LINE)
    assert pages.missing.tolist() == [i for i, char in enumerate(text) if char not in "abcd"]
    page = render_pages("\ue000", PageStyle(width=60, height=60, font_size=20, margin=10)).pages[0]
    reference = ReferenceRenderer(PageStyle(font_size=20))
    expected = np.full((60, 60), 255, np.uint8)
    box = np.full((14, 10), 255, np.uint8)
    box[1:-1, 1:-1] = 0
    composite(expected, box, 11, 10 + reference.up - 14)
    assert np.array_equal(page, expected)


def test_on_missing_error_names_characters_and_place():
    style = PageStyle(on_missing="error")
    assert len(render_pages("all there é", style)) == 1
    with pytest.raises(ValueError, match=r"no font has 2 characters, first at 3: .*\\u4e2d\\u6587"):
        render_pages("ab 中文", style)


@pytest.mark.parametrize("form", ["NFD", "NFKD"])
def test_decomposed_latin_is_drawn_as_the_precomposed_letter(form):
    for char in LATIN:
        parts = unicodedata.normalize(form, char)
        if len(parts) > 1 and unicodedata.normalize("NFC", parts) == char:
            assert same(f"x{char}y", f"x{parts}y"), char


def test_vietnamese_decomposed_is_vietnamese_precomposed():
    text = "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi."
    style = PageStyle(width=300, height=200)
    a, b = (render_pages(unicodedata.normalize(form, text), style) for form in ("NFC", "NFD"))
    assert np.array_equal(a.pages, b.pages) and len(b.missing) == 0
    assert b.ranges[-1, 1] == len(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize("base", "qxXwgbM")
def test_marks_add_ink_above_or_below_their_base_and_take_no_width(base):
    style = PageStyle(width=100, height=100, margin=30, font_size=20, shaping="off")
    plain = render_pages(base + "|", style).pages[0]
    for mark, above in (("\u0302", True), ("\u0323", False)):
        marked = render_pages(base + mark + "|", style).pages[0]
        added = np.argwhere(marked != plain)
        rows = np.flatnonzero((render_pages(base, style).pages[0] < 255).any(1))
        columns = np.flatnonzero((render_pages(base, style).pages[0] < 255).any(0))
        assert len(added) and (marked <= plain).all()
        assert (added[:, 0] < rows[0]).all() if above else (added[:, 0] > rows[-1]).all()
        middle = (added[:, 1].min() + added[:, 1].max()) / 2
        assert abs(middle - (columns[0] + columns[-1]) / 2) <= 1.5


def test_two_marks_on_one_base_do_not_touch():
    style = PageStyle(width=100, height=100, margin=40, font_size=20, shaping="off")
    one, two = (render_pages("q" + marks, style).pages[0] for marks in ("\u0302", "\u0302\u0302"))
    ink = int((255 - one.astype(int)).sum()), int((255 - two.astype(int)).sum())
    base = int((255 - render_pages("q", style).pages[0].astype(int)).sum())
    assert ink[1] - base == 2 * (ink[0] - base)


def test_a_mark_without_a_base_is_drawn_on_a_blank():
    for text in ("\u0301", "a\n\u0301b", "\t\u0301"):
        pages = render_pages(text, LINE)
        without = render_pages(text.replace("\u0301", ""), LINE)
        assert (pages.pages != without.pages).any() and pages.clipped == 0


def test_a_mark_that_no_font_has_is_a_box():
    assert render_pages("a\U0001e023b", LINE).missing.tolist() == [1]


SHAPED = {
    "Hebrew": "שלום",
    "Arabic": "سلام",
    "Indic": "क्षि",
    "Thai": "ที่",
    "control": "\u202eab\u202c",
}


@pytest.mark.parametrize("text", SHAPED.values(), ids=SHAPED)
def test_scripts_drawn_without_shaping_are_flagged_with_positions(text):
    style = PageStyle(width=400, height=60, shaping="off")
    pages = render_pages("plain " + text, style)
    special = [6 + i for i, char in enumerate(text) if char not in "ab"]
    assert pages.unshaped.tolist() == special
    assert len(render_pages("plain text", style).unshaped) == 0


def test_shaped_scripts_are_not_flagged_and_differ_from_unshaped_ones():
    pytest.importorskip("uharfbuzz")
    pytest.importorskip("bidi")
    for text in SHAPED.values():
        shaped, plain = (
            render_pages(text, PageStyle(width=400, height=60, shaping=mode))
            for mode in ("require", "off")
        )
        assert len(shaped.unshaped) == 0
        assert not np.array_equal(shaped.pages, plain.pages), text


def test_hebrew_reads_from_right_to_left():
    """Unjoined letters: the line is the unshaped one of the reversed text, at the right margin."""
    pytest.importorskip("uharfbuzz")
    pytest.importorskip("bidi")
    style = PageStyle(width=300, height=60, margin=20)
    shaped = render_pages("שלום עולם", style).pages[0]
    plain = render_pages(
        "םלוע םולש", PageStyle(width=300, height=60, margin=20, shaping="off")
    ).pages[0]
    crop = [page[:, (page < 255).any(0)] for page in (shaped, plain)]
    assert np.array_equal(crop[0][:, :4], crop[1][:, :4])
    ink = np.flatnonzero((shaped < 255).any(0))
    assert ink[0] > 150 and 270 < ink[-1] < 280
    mixed = render_pages("abc שלום def", style).pages[0]
    assert np.flatnonzero((mixed < 255).any(0))[0] < 30


def test_requiring_shaping_without_the_extra_is_an_error_that_says_what_to_install(monkeypatch):
    import deepsynth_min.pages.style as style_module

    def missing(name):
        raise style_module.PackageNotFoundError(name)

    monkeypatch.setattr(style_module, "version", missing)
    monkeypatch.setattr(style_module, "_shaper", style_module._shaper.__wrapped__)
    style = PageStyle(width=401, height=60, shaping="require")
    assert len(render_pages("plain", style)) == 1
    with pytest.raises(ValueError, match=r"Hebrew at 2 needs shaping: pip install .*\[shaping\]"):
        render_pages("a שלום", style)
    auto = PageStyle(width=401, height=61)
    assert render_pages("a שלום", auto).unshaped.tolist() == [2, 3, 4, 5]


def test_cjk_wraps_between_characters_and_keeps_punctuation_in_place():
    style = PageStyle(width=100, height=400, margin=0, font_size=20)
    for text in (
        "一二三四五六七八九十",
        "一二三四五。六七八九、十",
        "一二三四（五六）七八九「十」",
        "漢字とかなとカタカナ、ラーメンとコーヒー。",
        "中文 and English 混排，換行。",
    ):
        lines = [text[a:b] for a, b in render_pages(text, page_per_line(style)).ranges.tolist()]
        assert len(lines) > 1
        for line in lines:
            assert line[0] not in "。、）」，ーィ"
            assert line.rstrip()[-1] not in "（「"
        assert all(sum(not char.isascii() for char in line) <= 6 for line in lines)


def page_per_line(style):
    return PageStyle(width=style.width, height=1, margin=0, font_size=style.font_size)


def test_nbsp_holds_words_together_and_zwsp_and_soft_hyphens_let_them_part():
    style = PageStyle(width=60, height=1, margin=0, font_size=12)

    def lines(text):
        return [text[a:b] for a, b in render_pages(text, style).ranges.tolist()]

    assert lines("aaaaaa bb\u00a0cc") == ["aaaaaa ", "bb\u00a0cc"]
    assert lines("aaaaaa bb cc") == ["aaaaaa bb ", "cc"]
    assert lines("aaaaa\u200bbbbbb") == ["aaaaa\u200b", "bbbbb"]
    assert lines("aaaaa\u00adbbbbb") == ["aaaaa\u00ad", "bbbbb"]
    tall = PageStyle(width=60, height=60, margin=0, font_size=12)
    assert same("aaaaa\u00adbbbbb", "aaaaa-\nbbbbb", tall)
    assert same("aa\u00adbb", "aabb", tall)
