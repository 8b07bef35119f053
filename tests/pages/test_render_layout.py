"""Where text goes: lines, pages, columns, and which size fits."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from reference_renderer import ReferenceRenderer

from deepsynth_min.pages.renderer import PageStyle, Renderer, fit, render_pages

WORDS = "the quick brown fox jumps over the lazy dog and then it sleeps all day long in the sun. "


def blank(page):
    return int(page.min()) == 255


def ink_box(page):
    """(left, top, right, bottom) of what is not paper, right and bottom exclusive."""
    rows, columns = np.flatnonzero((page < 255).any(1)), np.flatnonzero((page < 255).any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=300), st.sampled_from(["keep", "collapse"]), st.sampled_from(["", " ¶ "]))
def test_ranges_one_after_another_are_the_text(text, spaces, mark):
    style = PageStyle(width=80, height=50, margin=2, font_size=9, spaces=spaces, newline_mark=mark)
    pages = render_pages(text, style)
    assert "".join(text[a:b] for a, b in pages.ranges.tolist()) == text
    assert pages.ranges[0, 0] == 0 and (pages.ranges[1:, 0] == pages.ranges[:-1, 1]).all()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_each_page_is_what_its_range_draws_alone(text):
    style = PageStyle(width=90, height=60, margin=3, font_size=10, shaping="off")
    pages = render_pages(text, style)
    for page, (start, end) in zip(pages.pages, pages.ranges.tolist()):
        if start and (text[start - 1] == "\xad" or text[start - 1 : start + 1] == "\r\n"):
            continue  # a shown hyphen belongs to its line end; \r\n is never cut
        alone = render_pages(text[start:end], style)
        hyphen = text[end - 1 : end] == "\xad"
        assert hyphen or np.array_equal(alone.pages[0], page)


def test_a_trailing_line_end_makes_no_empty_page_and_form_feeds_do():
    style = PageStyle(width=100, height=60, margin=2)
    assert len(render_pages("a\n", style)) == len(render_pages("a\f", style)) == 1
    pages = render_pages("\fa\f\fb", style).pages
    assert [blank(page) for page in pages] == [True, False, True, False]


def test_indentation_and_runs_of_spaces_are_kept_or_collapsed():
    def left_edges(text, **settings_):
        return ink_box(render_pages(text, PageStyle(width=400, height=40, **settings_)).pages[0])

    space = ReferenceRenderer(PageStyle()).glyph(" ")[3] // 64
    plain = left_edges("a b")
    assert left_edges("    a b")[0] == plain[0] + 4 * space
    assert left_edges("a    b")[2] == plain[2] + 3 * space
    for text in ("  a   b  ", "\ta \t b", "   \n\n a b"):
        kept = render_pages(text.strip("\n ").replace("\t", " "), PageStyle(spaces="collapse"))
        assert kept.pages.shape[0] == 1
    for text in ("    a b", "a    b   ", "\t a \t b"):
        assert left_edges(text, spaces="collapse") == plain


def test_tabs_go_to_stops_measured_in_spaces():
    space = ReferenceRenderer(PageStyle()).glyph(" ")[3] // 64
    bearing = ReferenceRenderer(PageStyle()).glyph("I")[1]
    for text, stops in (("\tI", 1), ("\t\tI", 2), (" " * 7 + "\tI", 1), (" " * 8 + "\tI", 2)):
        page = render_pages(text, PageStyle(width=400, height=40)).pages[0]
        assert ink_box(page)[0] == 16 + stops * 8 * space + bearing


def test_a_tab_leaves_at_least_a_space_free():
    """Else the columns of a table would read as one number."""
    for text in ("1", "12", "123", "1234", "12345", "iiii", "lllllll", "1.1"):
        style = PageStyle(width=400, height=40, tab=1)
        a, b = (ink_box(render_pages(t, style).pages[0])[2] for t in (text + " 7", text + "\t7"))
        assert a <= b


def test_a_newline_mark_is_drawn_and_the_line_goes_on():
    style = PageStyle(width=600, height=60, newline_mark="¶ ")
    for text in ("one\ntwo", "one\r\ntwo", "one\u2028two"):
        packed = render_pages(text, style).pages
        assert np.array_equal(
            packed, render_pages("one¶ two", PageStyle(width=600, height=60)).pages
        )
    assert len(render_pages("a\nb\nc\f d", style)) == 2
    narrow = PageStyle(width=60, height=200, margin=2, newline_mark="¶")
    assert np.array_equal(
        render_pages("aaaaa\nbbbbb", narrow).pages,
        render_pages("aaaaa¶\nbbbbb", PageStyle(width=60, height=200, margin=2)).pages,
    )


def test_justified_lines_end_at_the_right_margin_except_the_last_of_a_paragraph():
    style = PageStyle(width=300, height=300, margin=20, align="justify")
    left = PageStyle(width=300, height=300, margin=20)
    text = WORDS.replace("f", "d").replace("j", "i") * 3
    reference = ReferenceRenderer(style)
    lines, page = reference.wrap(text), render_pages(text, style).pages[0]
    for row, (_, shown, *_) in enumerate(lines):
        top = 20 + row * reference.step
        strip = page[top : top + reference.up + 1]
        last = text[shown - 1]
        space = (
            reference.glyph(last)[3] // 64
            - reference.glyph(last)[1]
            - reference.glyph(last)[0].shape[1]
        )
        end = np.flatnonzero((strip < 255).any(0))[-1] + 1
        assert (end == 280 - space) == (row < len(lines) - 1)
    assert len(render_pages(text, left)) == len(render_pages(text, style))


def lines_of(style, text, rows):
    """(left, right) of the ink of each of the first `rows` lines of a text's page."""
    page, step = render_pages(text, style).pages[0], round(style.line_height * style.font_size)
    strips = [page[style.margin + r * step :][:step] for r in range(rows)]
    return [(ink_box(strip)[0], ink_box(strip)[2]) for strip in strips]


def test_aligned_lines_end_at_the_right_or_leave_as_much_on_both_sides():
    text = "HHHH\nHHHHHHHH\nHH"
    left, right, center = (
        lines_of(PageStyle(width=300, height=100, align=align), text, 3)
        for align in ("left", "right", "center")
    )
    for (a, b), (c, d), (e, f) in zip(left, right, center):
        assert b - a == d - c == f - e
        assert a - 16 == left[0][0] - 16 and 284 - d == 284 - right[0][1]
        assert abs((e - a) - (c - e)) <= 1


def test_first_lines_and_the_others_of_a_paragraph_have_their_own_indents():
    style = PageStyle(width=200, height=200, first_indent=30, hanging_indent=7)
    plain = lines_of(PageStyle(width=200, height=200), "HH", 1)[0][0]
    text = "HHHH HHHH HHHH HHHH HHHH HHHH\nHHHH"
    found = [a - plain for a, _ in lines_of(style, text, 4)]
    assert found == [30, 7, 7, 30]


def test_the_indent_of_a_right_to_left_paragraph_is_at_its_right():
    pytest.importorskip("bidi")
    plain = lines_of(PageStyle(width=200, height=60), "שלום", 1)[0]
    moved = lines_of(PageStyle(width=200, height=60, first_indent=30), "שלום", 1)[0]
    assert [a - b for a, b in zip(plain, moved)] == [30, 30]


def test_justified_lines_of_right_to_left_paragraphs_fill_the_column_and_no_more():
    pytest.importorskip("bidi")
    style = PageStyle(width=200, height=200, align="justify", margin=20)
    lines = lines_of(style, "שלום עולם " * 12, 4)
    assert all(20 <= a < 24 and 176 < b <= 180 for a, b in lines[:3])


def test_ink_and_paper_are_the_darkest_and_the_lightest_grey():
    for ink, paper in ((40, 220), (220, 40), (0, 200), (90, 255)):
        page = render_pages(WORDS * 3, PageStyle(ink=ink, paper=paper)).pages[0]
        assert {int(page.min()), int(page.max())} == {ink, paper}
        assert page[0, 0] == paper


def test_columns_are_filled_one_after_another():
    text = "\n".join(f"line {i}" for i in range(40))
    style = PageStyle(width=400, height=200, margin=10, columns=2, column_gap=40)
    pages = render_pages(text, style)
    single = render_pages(text, PageStyle(width=190, height=200, margin=10, margin_right=0))
    assert len(pages) == (len(single) + 1) // 2
    for number, page in enumerate(single.pages):
        left = 210 * (number % 2)
        assert np.array_equal(pages.pages[number // 2][:, left : left + 190], page)


def test_inverted_pages_are_the_complement():
    a, b = (render_pages(WORDS, PageStyle(width=200, height=90, invert=i)) for i in (False, True))
    assert np.array_equal(a.pages, 255 - b.pages)


def test_the_last_page_is_cropped_to_its_text_on_request():
    style = PageStyle(width=200, height=100, margin=8, crop_last=True)
    pages = render_pages("one\n" * 9, style)
    images = pages.images()
    assert all(image.shape == (100, 200) for image in images[:-1]) and len(images) == len(pages)
    rest = pages.pages[-1][images[-1].shape[0] :]
    assert images[-1].shape[0] < 100 and blank(rest) and not blank(images[-1])
    assert ink_box(images[-1])[3] <= images[-1].shape[0] - 8


LONG = PageStyle(width=200, height=100, margin=8, max_pages=2)


def test_too_many_pages_are_an_error_that_names_both_numbers():
    need = Renderer(LONG).count_pages(WORDS * 20)
    with pytest.raises(ValueError, match=f"max_pages: 2 .* needs {need}"):
        render_pages(WORDS * 20, LONG)


def test_truncation_keeps_the_first_pages_and_reports_the_rest():
    style = PageStyle(width=200, height=100, margin=8, max_pages=2, overflow="truncate")
    cut, whole = (
        render_pages(WORDS * 20, style),
        render_pages(WORDS * 20, PageStyle(width=200, height=100, margin=8)),
    )
    assert np.array_equal(cut.pages, whole.pages[:2])
    assert cut.truncated == len(WORDS * 20) - cut.ranges[-1, 1] > 0
    assert render_pages("short", style).truncated == 0


def test_truncation_reports_no_character_of_the_pages_that_are_gone():
    text = "a\n" * 60 + "中" * 5
    style = PageStyle(width=100, height=50, margin=4, max_pages=1, overflow="truncate")
    assert len(render_pages(text, style).missing) == 0


def test_shrinking_takes_the_largest_size_that_fits():
    style = PageStyle(
        width=200, height=100, margin=8, max_pages=2, overflow="shrink", min_font_size=4
    )
    pages = render_pages(WORDS * 10, style)
    size = pages.style.font_size
    assert len(pages) <= 2 and pages.truncated == 0 and 4 <= size < 16
    plain = PageStyle(width=200, height=100, margin=8, font_size=size)
    assert np.array_equal(pages.pages, render_pages(WORDS * 10, plain).pages)
    assert Renderer(plain.at_size(size + 1)).count_pages(WORDS * 10) > 2
    with pytest.raises(ValueError, match="max_pages: 2"):
        render_pages(WORDS * 900, style)


@pytest.mark.parametrize("pages", [1, 2, 5])
def test_fit_is_the_largest_size_of_all_that_fit(pages):
    style, text = PageStyle(width=200, height=160, margin=8), WORDS * 6 + "中文 e\u0323"
    fitting = [
        size for size in range(5, 40) if Renderer(style.at_size(size)).count_pages(text) <= pages
    ]
    assert fit(text, style, pages, 5, 39) == max(fitting)
    assert fit(text * 99, style, 1, 30, 39) is None


@pytest.mark.parametrize(
    "field, value",
    [
        ("width", 0),
        ("height", 99999),
        ("margin", -1),
        ("font_size", 0),
        ("line_height", 0.0),
        ("hinting", "strong"),
        ("align", "top"),
        ("ink", 256),
        ("ink", 255),
        ("paper", -1),
        ("letter_spacing", 2000.0),
        ("horizontal_scale", 0.0),
        ("first_indent", 992),
        ("hanging_indent", 5000),
        ("columns", 0),
        ("columns", 60),
        ("tab", 0),
        ("spaces", "drop"),
        ("newline_mark", "a\n"),
        ("overflow", "ignore"),
        ("max_pages", -1),
        ("on_missing", "skip"),
        ("shaping", "maybe"),
        ("fonts", "file.ttf"),
        ("line_height", float("nan")),
        ("min_font_size", 0),
    ],
)
def test_a_setting_that_makes_no_sense_is_named_with_its_value(field, value):
    with pytest.raises(ValueError) as error:
        PageStyle(**{field: value})
    assert str(error.value).startswith(f"{field}: ") and repr(value) in str(error.value)
