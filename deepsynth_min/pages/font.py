"""Font files -> glyph coverage, metrics, character maps: what is done once per character.

In: a chain of fonts (the embedded default first) and a size in pixels. Out: per character a `Glyph`
with coverage uint8 [height, width], its place relative to the pen, and its advance in 26.6 pixels.
The one idea: FreeType is asked once per character; everything per page happens in csrc/.

The embedded default is the pip package pymupdf-fonts (all OFL): Noto Sans for Latin, Greek and
Cyrillic; Noto Symbols and Math for signs; FiraGO for Arabic, Hebrew, Devanagari, Thai and Georgian.
font-roboto would have been smaller, but has no symbols, no maths and no script beyond the first.
"""

import ctypes
import hashlib
import io
import math
import os
from dataclasses import dataclass
from functools import lru_cache

import freetype
import numpy as np
import pymupdf_fonts

from .characters import is_wide

EMBEDDED = ("notos", "symbol2", "symbol1", "math", "figo", "music")

_HINTING = {
    "none": freetype.FT_LOAD_NO_HINTING,
    "normal": freetype.FT_LOAD_DEFAULT,
    "light": freetype.FT_LOAD_TARGET_LIGHT,
    "auto": freetype.FT_LOAD_FORCE_AUTOHINT,
}
_NO_KERNING = 255  # kFonts in csrc/atlas.h
_NO_INK = np.zeros((0, 0), np.uint8)


@dataclass(frozen=True)
class Glyph:
    """Ink of one character: row 0 of `coverage` lies `top` rows above the baseline, column 0
    `left` pixels right of the pen. `font` is its place in the chain (255: none)."""

    coverage: np.ndarray
    left: int
    top: int
    advance: int
    font: int = _NO_KERNING
    index: int = 0


@lru_cache(maxsize=32)
def font_bytes(source: str) -> bytes:
    """Content of an embedded font (a name of EMBEDDED) or of a font file. Raises ValueError."""
    if source in EMBEDDED:
        return pymupdf_fonts.myfont(source)
    try:
        if os.path.exists(source) and not os.path.isfile(source):  # a pipe might never end
            raise ValueError(f"font: {source!r} is not a regular file")
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"font: cannot read {source!r}: {error.strerror}") from None


@lru_cache(maxsize=32)
def font_digest(source: str) -> str:
    """SHA-256 of a font's bytes, in hex. Raises ValueError if they cannot be read."""
    return hashlib.sha256(font_bytes(source)).hexdigest()


def freetype_version() -> str:
    """Of the FreeType library in use, e.g. 2.13.2."""
    return ".".join(map(str, freetype.version()))


class FontChain:
    """Fonts in order of preference at one size; an embedded one is opened when those before lack a
    glyph. Raises ValueError naming a file that is no scalable font.

    Not safe for threads: the renderer serialises its use.
    """

    def __init__(self, sources: tuple[str, ...], size: int, hinting: str = "none"):
        self.sources, self.size = sources, size
        self._flags = _HINTING[hinting] | freetype.FT_LOAD_NO_BITMAP
        self._faces: dict[int, freetype.Face] = {}
        for number, source in enumerate(sources):
            if source not in EMBEDDED:  # a user's file: say now if it cannot be used
                self.face(number)

    def face(self, number: int) -> freetype.Face:
        """Font `number` of the chain, opened and sized on first use."""
        if number not in self._faces:
            source = self.sources[number]
            try:
                face = freetype.Face(io.BytesIO(font_bytes(source)))
            except freetype.FT_Exception as error:
                raise ValueError(f"font: {source!r} is not a font file ({error})") from None
            if not face.is_scalable:
                raise ValueError(f"font: {source!r} has bitmaps of fixed size, no outlines")
            face.set_pixel_sizes(0, self.size)
            self._faces[number] = face
        return self._faces[number]

    def extent(self) -> tuple[int, int]:
        """(rows above the baseline, rows below) that the first font asks for, in whole pixels."""
        face = self.face(0)
        up = math.ceil(face.ascender * self.size / face.units_per_EM)
        return up, math.ceil(-face.descender * self.size / face.units_per_EM)

    def find(self, point: int) -> tuple[int, int] | None:
        """(font, glyph index) of the first font that has the character, or None."""
        if 0xD800 <= point < 0xE000:
            return None
        for number in range(len(self.sources)):
            index = self.face(number).get_char_index(point)
            if index:
                return number, index
        return None

    def load(self, number: int, index: int, ink: bool = True) -> Glyph:
        """Glyph `index` of font `number`; without ink only its advance (for layout searches)."""
        face = self.face(number)
        face.load_glyph(index, self._flags | (freetype.FT_LOAD_RENDER if ink else 0))
        slot = face.glyph._FT_GlyphSlot.contents
        bitmap, coverage = slot.bitmap, _NO_INK
        if ink and bitmap.rows and bitmap.width:
            raw = ctypes.string_at(bitmap.buffer, bitmap.rows * bitmap.pitch)
            coverage = np.frombuffer(raw, np.uint8).reshape(bitmap.rows, bitmap.pitch)
            coverage = np.ascontiguousarray(coverage[:, : bitmap.width])
        advance = max(0, slot.advance.x)
        return Glyph(coverage, slot.bitmap_left, slot.bitmap_top, advance, number, index)

    def kerning(self, number: int) -> list[tuple[int, int, int]]:
        """(left glyph, right glyph, 26.6 pixels) of the kern table, as FreeType scales it."""
        face = self.face(number)
        if not face.has_kerning:
            return []
        scaled, vector = [], freetype.FT_Vector(0, 0)
        for left, right in _kern_pairs(font_bytes(self.sources[number])):
            # Face.get_kerning would take these glyph numbers for characters.
            freetype.FT_Get_Kerning(
                face._FT_Face, left, right, freetype.FT_KERNING_DEFAULT, ctypes.byref(vector)
            )
            if vector.x:
                scaled.append((left, right, vector.x))
        return scaled

    def box(self, point: int) -> Glyph:
        """The visible box of a character that no font has: an outline on the baseline."""
        width = max(1, self.size if is_wide(point) else round(0.6 * self.size))
        side, stroke = max(1, width - 2), max(1, self.size // 16)
        coverage = np.full((max(1, round(0.7 * self.size)), side), 255, np.uint8)
        coverage[stroke:-stroke, stroke:-stroke] = 0
        return Glyph(coverage, (width - side) // 2, len(coverage), width * 64)


def _kern_pairs(data: bytes) -> set[tuple[int, int]]:
    """Glyph pairs of all horizontal format 0 subtables of a TrueType `kern` table (version 0)."""

    def u16(at: int) -> int:
        return int.from_bytes(data[at : at + 2], "big")

    tables = range(12, 12 + 16 * u16(4), 16)
    at = next(
        (int.from_bytes(data[t + 8 : t + 12], "big") for t in tables if data[t : t + 4] == b"kern"),
        0,
    )
    pairs: set[tuple[int, int]] = set()
    if not at or u16(at) != 0:
        return pairs
    subtable = at + 4
    for _ in range(u16(at + 2)):
        length, coverage, count = u16(subtable + 2), u16(subtable + 4), u16(subtable + 6)
        if coverage >> 8 == 0 and coverage & 1:
            for pair in range(subtable + 14, subtable + 14 + 6 * count, 6):
                pairs.add((u16(pair), u16(pair + 2)))
        subtable += length
    return pairs
