"""Pages are exact: equal, in every pixel, to a slow reference and to Pillow."""

import io
import struct
from dataclasses import replace

import freetype
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from reference_renderer import ALPHABET, ReferenceRenderer, embedded

from deepsynth_min.pages import glyphs
from deepsynth_min.pages.renderer import PageStyle, Renderer, render_pages

PROSE = (
    "It was the best of times, it was the worst of times; “the age of wisdom”, the age of folly.\n"
    "\tJ'aime la forêt où jaillit l'eau: fjord, AVATAR, To, Ty, (f) [j] fluffy.\n\n"
    "    Über große Flüsse führen 17 Brücken – sieben davon aus Holz… Weiß man's? Tokyo; WAVE.\n"
) * 3


def assert_same(text, style):
    expected, ranges = ReferenceRenderer(style).render(text)
    got = render_pages(text, style)
    assert got.ranges.tolist() == ranges
    assert got.pages.shape == expected.shape
    assert np.array_equal(got.pages, expected), np.argwhere(got.pages != expected)[:5]


styles = st.fixed_dictionaries(
    {
        "width": st.integers(1, 150),
        "height": st.integers(1, 120),
        "font_size": st.integers(1, 28),
        "line_height": st.floats(0.3, 2),
        "hinting": st.sampled_from(["none", "none", "normal", "light", "auto"]),
        "kerning": st.booleans(),
        "fractional": st.booleans(),
        "invert": st.booleans(),
        "align": st.sampled_from(["left", "right", "center", "justify"]),
        "horizontal_scale": st.sampled_from([1.0, 1.0, 0.5, 0.83, 1.7]),
        "letter_spacing": st.sampled_from([0.0, 0.0, -3.0, -0.4, 0.7, 1.0, 5.0]),
        "first_indent": st.sampled_from([0, 0, 3, 17]),
        "hanging_indent": st.sampled_from([0, 0, 4, 21]),
        "ink": st.sampled_from([0, 0, 60, 190, 255]),
        "paper": st.sampled_from([255, 255, 230, 100, 1]),
        "columns": st.integers(1, 3),
        "column_gap": st.integers(0, 9),
        "tab": st.integers(1, 8),
        "margin_left": st.integers(0, 30),
        "margin_right": st.integers(0, 30),
        "margin_top": st.integers(0, 30),
        "margin_bottom": st.integers(0, 30),
    }
)


def possible(settings_):
    try:
        return PageStyle(**settings_)
    except ValueError:
        return None


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(styles.map(possible).filter(bool), st.text(ALPHABET, max_size=120))
def test_random_texts_in_random_styles_equal_the_reference(style, text):
    assert_same(text, style)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(60, 200),
    st.sampled_from([8, 11, 12, 16]),
    st.sampled_from(["left", "right", "center", "justify"]),
    st.sampled_from([-1.0, 0.0, 2.0]),
    st.lists(st.text("abcdefgijmtvwATV.,漢字（。\u00ad", max_size=9), max_size=40),
    st.sampled_from([" ", "  ", "\u200b", " \t"]),
)
@example(60, 16, "right", -1.0, ["", "", "", "\u00adAAAA"], " ")  # a hyphen behind blanks alone
@example(60, 8, "right", -1.0, ["A", ""], "\u200b")  # nothing is seen behind the last letter
@example(60, 11, "right", 2.0, ["AAAAAAAAA", "\u00ad\u00adAA"], " ")
def test_random_words_wrap_as_in_the_reference(width, size, align, spacing, words, space):
    style = PageStyle(
        width=width,
        height=90,
        margin=3,
        font_size=size,
        align=align,
        kerning=True,
        letter_spacing=spacing,
        first_indent=9,
        hanging_indent=5,
    )
    assert_same(space.join(words), style)


@pytest.mark.parametrize("size", [7, 8, 12, 16, 24, 33])
@pytest.mark.parametrize("columns", [1, 2])
def test_prose_equals_the_reference(size, columns):
    assert_same(PROSE, PageStyle(width=500, height=300, font_size=size, columns=columns))


def fonts_for_pillow(ImageFont):
    """The embedded font, and DejaVu Sans where the machine has it."""
    found = {"": embedded("notos")}
    try:
        path = ImageFont.truetype("DejaVuSans.ttf").path
    except OSError:
        return found
    with open(path, "rb") as file:
        return found | {path: file.read()}


@pytest.mark.parametrize("size", [12, 16])
def test_prose_equals_pillows_basic_layout(size):
    """At matching settings: Pillow hints, and of a kern table it takes 1/64 of a pixel."""
    pytest.importorskip("PIL")
    from PIL import Image, ImageDraw, ImageFont

    for name, data in fonts_for_pillow(ImageFont).items():
        style = PageStyle(width=520, height=400, font_size=size, hinting="normal", main_font=name)
        font = ImageFont.truetype(io.BytesIO(data), size, layout_engine=ImageFont.Layout.BASIC)
        text = PROSE.replace("\t", "").replace("…", "...")
        reference, expected, drawn = ReferenceRenderer(style), [], 0
        rows = 1 + (style.height - 32 - reference.up - reference.down) // reference.step
        lines = reference.wrap(text)
        for first in range(0, len(lines), rows):
            image = Image.new("L", (style.width, style.height), 255)
            canvas = ImageDraw.Draw(image)
            for row, (start, shown, *_) in enumerate(lines[first : first + rows]):
                place = (16, 16 + reference.up + row * reference.step)
                canvas.text(place, text[start:shown], font=font, fill=0, anchor="ls")
                drawn += shown > start
            expected.append(np.asarray(image))
        got = render_pages(text, style)
        assert drawn > 5
        assert np.array_equal(got.pages, np.stack(expected)), name


@pytest.mark.parametrize("size", [25, 40])
def test_kerned_prose_equals_the_reference(tmp_path, size):
    """With the kern table of a font made here, as FreeType itself scales it."""
    pairs = {"AV": -80, "VA": -80, "To": -120, "Ty": -90, "A ": -40, "fj": 250, "WA": -60}
    path = tmp_path / "kerned.ttf"
    path.write_bytes(with_kern_table(embedded("notos"), pairs))
    for align in ("left", "justify"):
        style = PageStyle(
            width=500, height=300, font_size=size, kerning=True, align=align, main_font=str(path)
        )
        assert ReferenceRenderer(style).kern("A", "V") < 0 < ReferenceRenderer(style).kern("f", "j")
        assert_same(PROSE, style)
    unkerned = render_pages(PROSE, replace(style, kerning=False)).pages
    assert not np.array_equal(render_pages(PROSE, style).pages, unkerned)


def with_kern_table(data, pairs):
    """The font with a `kern` table appended and listed in its directory."""
    face = freetype.Face(io.BytesIO(data))
    found = sorted((*map(face.get_char_index, pair), value) for pair, value in pairs.items())
    kern = struct.pack(">9H", 0, 1, 0, 14 + 6 * len(found), 1, len(found), 0, 0, 0)
    kern += b"".join(struct.pack(">HHh", *pair) for pair in found)
    (count,) = struct.unpack(">H", data[4:6])
    entries = [struct.unpack_from(">4sIII", data, 12 + 16 * i) for i in range(count)]
    entries = [(tag, checksum, offset + 16, length) for tag, checksum, offset, length in entries]
    entries.append((b"kern", 0, len(data) + 16, len(kern)))
    directory = b"".join(struct.pack(">4sIII", *entry) for entry in sorted(entries))
    head = data[:4] + struct.pack(">H", count + 1) + data[6:12]
    return head + directory + data[12 + 16 * count :] + kern


def test_one_renderer_for_many_texts_draws_each_as_a_new_one_would():
    style = PageStyle(width=200, height=100)
    renderer = Renderer(style)
    texts = [PROSE[i : i + 97] for i in range(0, len(PROSE) - 97, 31)]
    for text in texts:
        together = renderer.render_pages(text).pages
        glyphs._store.cache_clear()  # else they would share their glyphs
        assert np.array_equal(together, Renderer(style).render_pages(text).pages)
