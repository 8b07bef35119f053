"""Font files -> glyph coverage, metrics, character maps: what is done once per character.

In: a chain of fonts (the embedded default first) and a size in pixels. Out: per character a `Glyph`
with coverage uint8 [height, width], its place relative to the pen, and its advance in 26.6 pixels.
The one idea: FreeType is asked once per character; everything per page happens in csrc/.

The embedded default is the pip package pymupdf-fonts (all OFL): Noto Sans for Latin, Greek and
Cyrillic; Noto Symbols and Math for signs; FiraGO for Arabic, Hebrew, Devanagari, Thai and Georgian.
font-roboto would have been smaller, but has no symbols, no maths and no script beyond the first.
"""

import ctypes
import math
from dataclasses import dataclass
from functools import lru_cache

import freetype
import numpy as np

from ..characters import is_wide
from .font_file import EMBEDDED, font_bytes, installed_fonts, open_face, parse
from .kerning import gpos_pairs, kern_pairs

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


class FontChain:
    """Fonts in order of preference at one size; an embedded one is opened when those before lack a
    glyph. Raises ValueError naming a file that is no scalable font.

    Not safe for threads: the renderer serialises its use.
    """

    def __init__(
        self, sources: tuple[str, ...], size: int, hinting: str = "none", scale: float = 1.0
    ):
        self.sources, self.size = sources, size
        self.scale = scale  # of widths
        self._flags = _HINTING[hinting] | freetype.FT_LOAD_NO_BITMAP
        self._faces: dict[int, freetype.Face] = {}
        for number, source in enumerate(sources):
            # A user's file: say now if it cannot be used.
            if source not in EMBEDDED and source not in installed_fonts():
                self.face(number)

    def face(self, number: int) -> freetype.Face:
        """Font `number` of the chain, opened and sized on first use."""
        if number not in self._faces:
            face = open_face(self.sources[number])
            face.set_char_size(round(64 * self.size * self.scale), 64 * self.size)  # at 72 dpi
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

    def kerning(self, number: int, fractional: bool = False) -> list[tuple[int, int, int]]:
        """(left glyph, right glyph, 26.6 pixels) of the kern table, as FreeType scales it; of a
        font without, of its GPOS table, in whole pixels unless `fractional`."""
        face, source = self.face(number), self.sources[number]
        if not face.has_kerning:
            return self._gpos_kerning(face, source, fractional)
        scaled, vector = [], freetype.FT_Vector(0, 0)
        for left, right in kern_pairs(font_bytes(source), parse(source).number):
            # Face.get_kerning would take these glyph numbers for characters.
            freetype.FT_Get_Kerning(
                face._FT_Face, left, right, freetype.FT_KERNING_DEFAULT, ctypes.byref(vector)
            )
            if vector.x:
                scaled.append((left, right, vector.x))
        return scaled

    def _gpos_kerning(
        self, face: freetype.Face, source: str, fractional: bool
    ) -> list[tuple[int, int, int]]:
        rows, step = _gpos_rows(source).copy(), 1 if fractional else 64
        units = 64 * self.size / face.units_per_EM * self.scale
        rows[:, 2] = np.floor(rows[:, 2] * units / step + 0.5) * step
        return rows[rows[:, 2] != 0].tolist()

    def box(self, point: int) -> Glyph:
        """The visible box of a character that no font has: an outline on the baseline."""
        em = self.size * self.scale
        width = max(1, round(em if is_wide(point) else 0.6 * em))
        side, stroke = max(1, width - 2), max(1, self.size // 16)
        coverage = np.full((max(1, round(0.7 * self.size)), side), 255, np.uint8)
        coverage[stroke:-stroke, stroke:-stroke] = 0
        return Glyph(coverage, (width - side) // 2, len(coverage), width * 64)


@lru_cache(maxsize=16)
def _gpos_rows(source: str) -> np.ndarray:
    """[pairs, 3]: left glyph, right glyph, font units; of glyphs that a character can be."""
    glyphs = {glyph for _, glyph in open_face(source).get_chars()}
    pairs = gpos_pairs(font_bytes(source), parse(source).number, glyphs)
    rows = [(left, right, value) for (left, right), value in pairs.items()]
    return np.array(rows, np.int64).reshape(-1, 3)


def nothing_to_kern(source: str) -> bool:
    """Whether a font has neither a kern table nor pairs in GPOS. Raises ValueError."""
    return not open_face(source).has_kerning and not len(_gpos_rows(source))
