"""Fonts by name: collections, variable fonts, and kerning of kern and GPOS tables."""

import io
import random
import struct

import freetype
import numpy as np
import pytest
import uharfbuzz
from reference_renderer import ReferenceRenderer, embedded

from deepsynth_min import render
from deepsynth_min.pages.fonts.font import FontChain, nothing_to_kern
from deepsynth_min.pages.fonts.font_file import FontName, font_digest, parse
from deepsynth_min.pages.fonts.kerning import gpos_pairs
from deepsynth_min.pages.renderer import PageStyle, render_pages
from deepsynth_min.pages.scripts import kerning_complaint

PROSE = "AVATAR: To Ty. Wave, “LT” fjord — P. Yes; ΑΥΤΟ ТАК. 11 7. r, v. "


def collection(*fonts: bytes) -> bytes:
    """A TrueType collection: the fonts one after another, their offsets moved."""
    start, places, bodies = 12 + 4 * len(fonts), [], b""
    for data in fonts:
        base = start + len(bodies)
        places.append(base)
        moved = bytearray(data)
        for entry in range(12, 12 + 16 * struct.unpack_from(">H", data, 4)[0], 16):
            (offset,) = struct.unpack_from(">I", data, entry + 8)
            struct.pack_into(">I", moved, entry + 8, offset + base)
        bodies += bytes(moved) + bytes(-len(moved) % 4)
    return struct.pack(f">4sII{len(fonts)}I", b"ttcf", 0x10000, len(fonts), *places) + bodies


@pytest.fixture
def ttc(tmp_path):
    path = tmp_path / "two.ttc"
    path.write_bytes(collection(embedded("notos"), embedded("figo")))
    return path


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a.ttf", FontName("a.ttf")),
        ("a.ttc#2", FontName("a.ttc", 2)),
        ("a b@x.ttf", FontName("a b@x.ttf")),
        ("a@b/c.ttf@wght=400", FontName("a@b/c.ttf", 0, (("wght", 400.0),))),
        ("a.ttc#1@wght=400,wdth=9.5", FontName("a.ttc", 1, (("wght", 400), ("wdth", 9.5)))),
        ("a#b.ttf", FontName("a#b.ttf")),
    ],
)
def test_a_name_is_a_file_a_number_and_axes(name, parts):
    assert parse(name) == parts


def test_a_file_of_such_a_name_is_that_file(tmp_path):
    path = tmp_path / "odd#1@wght=3"
    path.write_bytes(embedded("notos"))
    assert parse(str(path)) == FontName(str(path))
    assert FontChain((str(path),), 16).find(ord("a"))


@pytest.mark.parametrize(("number", "name"), [(0, "notos"), (1, "figo")])
def test_a_font_of_a_collection_draws_as_the_font_alone(tmp_path, ttc, number, name):
    alone = tmp_path / "alone.ttf"
    alone.write_bytes(embedded(name))
    text = PROSE + "سلام"
    pages = [
        render_pages(text, PageStyle(width=300, height=200, main_font=font, kerning=True)).pages
        for font in (f"{ttc}#{number}", str(alone))
    ]
    assert np.array_equal(*pages)


def test_fonts_of_one_collection_have_digests_of_their_own(tmp_path, ttc):
    digests = {font_digest(f"{ttc}#{number}") for number in (0, 1)}
    moved = tmp_path / "moved.ttc"
    moved.write_bytes(ttc.read_bytes())
    assert len(digests) == 2 and font_digest(f"{moved}#1") in digests


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("#2", "the file holds 2 fonts, #0 to #1"),
        ("#1@wght=400", "not a variable font, it has no axes"),
        ("#1@weight=400", "'weight=400' is not an axis and a number, as wght=400"),
        ("@wght=heavy", "'wght=heavy' is not an axis and a number"),
        (".not", "cannot read"),
    ],
)
def test_a_name_that_cannot_be_is_one_line(tmp_path, ttc, capsys, name, said):
    (tmp_path / "a.txt").write_text("a")
    files = [str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--font", f"{ttc}{name}"]
    assert render.main(files) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0] and lines[0].startswith("error: font: ")


# -- variable fonts --------------------------------------------------------------------------------


@pytest.fixture
def variable(extra_fonts):
    import manimgx_fonts

    return f"{manimgx_fonts.__path__[0]}/NotoSans[wght].ttf"


def test_an_axis_draws_as_the_fonts_own_instance(variable):
    peer = freetype.Face(variable)
    peer.set_pixel_sizes(0, 40)
    for instance, weight in ((b"Regular", 400), (b"Bold", 700)):
        peer.set_var_named_instance(instance.decode())
        chain = FontChain((f"{variable}@wght={weight}",), 40)
        for char in "aWgé":
            glyph = chain.load(*chain.find(ord(char)))
            flags = freetype.FT_LOAD_NO_HINTING | freetype.FT_LOAD_NO_BITMAP
            peer.load_char(char, flags | freetype.FT_LOAD_RENDER)
            bitmap = peer.glyph.bitmap
            rows = np.array(bitmap.buffer, np.uint8).reshape(bitmap.rows, bitmap.pitch)
            assert np.array_equal(glyph.coverage, rows[:, : bitmap.width])
            assert glyph.advance == peer.glyph.advance.x


def test_a_weight_counts_for_identity_and_is_checked(variable):
    assert font_digest(f"{variable}@wght=400") != font_digest(f"{variable}@wght=700")
    for name, said in (
        ("@wght=1000", "wght is from 400 to 700"),
        ("@wdth=75", "no axis 'wdth'; there is wght 400 to 700"),
    ):
        with pytest.raises(ValueError, match=said):
            PageStyle(main_font=variable + name) and FontChain((variable + name,), 16)


def test_shaped_text_has_the_weight_too(variable):
    arabic = variable.replace("Sans[", "SansArabic[")
    styles = [PageStyle(main_font=f"{arabic}@wght={weight}", font_size=40) for weight in (400, 700)]
    thin, bold = (render_pages("سلام عليكم", style).pages.astype(int) for style in styles)
    assert (255 - bold).sum() > 1.2 * (255 - thin).sum()


# -- kerning ---------------------------------------------------------------------------------------


def test_pairs_of_gpos_are_what_harfbuzz_kerns():
    data, chance = embedded("notos"), random.Random(0)
    face, shaper = freetype.Face(io.BytesIO(data)), uharfbuzz.Font(uharfbuzz.Face(data))
    pairs = gpos_pairs(data, 0, {glyph for _, glyph in face.get_chars()})
    points = [*range(0x21, 0x7F), *range(0xC0, 0x180), *range(0x391, 0x3CE), *range(0x410, 0x450)]
    chars = [chr(point) for point in points if face.get_char_index(point)]
    kerned = 0
    for _ in range(20_000):
        left, right = chance.choice(chars), chance.choice(chars)
        buffer = uharfbuzz.Buffer()
        buffer.add_str(left + right)
        buffer.guess_segment_properties()
        off = dict.fromkeys(("liga", "clig", "calt", "ccmp", "locl"), False)
        uharfbuzz.shape(shaper, buffer, off)
        glyphs = face.get_char_index(left), face.get_char_index(right)
        moved = buffer.glyph_positions[0].x_advance - shaper.get_glyph_h_advance(glyphs[0])
        assert pairs.get(glyphs, 0) == moved, (left, right)
        kerned += moved != 0
    assert kerned > 100


@pytest.mark.parametrize("fractional", [True, False])
def test_kerned_pages_equal_the_reference(fractional):
    style = PageStyle(width=400, height=300, font_size=30, kerning=True, fractional=fractional)
    assert ReferenceRenderer(style).kern("A", "V") < 0
    pages, _ = ReferenceRenderer(style).render(PROSE)
    assert np.array_equal(render_pages(PROSE, style).pages, pages)


def test_a_font_without_kerning_is_named(tmp_path, capsys):
    path = tmp_path / "signs.ttf"
    path.write_bytes(embedded("symbol1"))
    assert nothing_to_kern(str(path)) and not nothing_to_kern("notos")
    (tmp_path / "a.txt").write_text("a")
    files = [str(tmp_path / "a.txt"), "--out", str(tmp_path / "out"), "--main-font", str(path)]
    assert render.main([*files, "--kerning"]) == 0
    said = f"warning: --kerning: {path} has neither a kern table nor GPOS kerning"
    assert said in capsys.readouterr().out
    assert kerning_complaint(PageStyle(main_font=str(path))) == ""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30))
def test_a_damaged_gpos_table_ends_without_a_crash(seed):
    """Random bytes in the table, or its end cut off: pairs or none, in little time."""
    chance, data = random.Random(seed), bytearray(embedded("notos"))
    entries = range(12, 12 + 16 * struct.unpack_from(">H", data, 4)[0], 16)
    entry = next(e for e in entries if data[e : e + 4] == b"GPOS")
    offset, length = struct.unpack_from(">II", data, entry + 8)
    if seed % 3 == 0:
        del data[offset + chance.randrange(length) :]
    for _ in range(chance.choice([1, 10, 200])):
        at = offset + chance.randrange(min(length, 4000))
        if at < len(data):
            data[at] = chance.randrange(256)
    pairs = gpos_pairs(bytes(data), 0, set(range(300)))
    assert all(-(2**20) < value < 2**20 for value in pairs.values())
