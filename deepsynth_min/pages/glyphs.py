"""Characters -> cells of the glyph atlas: the bridge between FreeType (font.py) and csrc/.

In: units that the atlas does not have (code points, or clusters of glyphs). Out: the same units,
drawn once and added. The one idea: a cluster (a base with its marks, a shaped ligature, a newline
mark) becomes one more unit with a number above Unicode, so layout and drawing know only units.
"""

import math
import os
import threading
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from .._raster import ALIGN, FIRST_COMPOSITE, FLAGS, KINDS, UNITS, Atlas, Frame
from . import characters
from .fonts.font import FontChain, Glyph
from .style import PageStyle

CONTINUE = FIRST_COMPOSITE  # the unit of a character that the unit before it already draws
CONTINUE_UNSHAPED = CONTINUE + 1  # the same, to be reported as unshaped
MAX_COMPOSITES = 1 << 16  # then the renderer starts a new store: memory stays bounded
# The page settings that decide what glyphs look like; styles that agree in them share a store.
GLYPHS = (
    *("main_font", "fonts", "extra_fonts", "font_size", "horizontal_scale", "hinting"),
    *("kerning", "fractional", "spaces", "newline_mark", "shaping"),
)
MOST_STORES = 128  # kept by a process, the latest used

Parts = Iterable[tuple[Glyph, int, int]]  # of a cluster: (glyph, x, y), px from the pen, y upwards

_REPORTED = FLAGS["missing"] | FLAGS["invisible"] | FLAGS["unshaped"] | FLAGS["prepare"]
_NO_INK = np.zeros((0, 0), np.uint8)


class GlyphStore:
    """An atlas and what fills it. Safe for threads; the atlas may be read while it grows.

    ink: False keeps advances only, for layout searches.
    """

    def __init__(self, style: PageStyle, ink: bool = True):
        size = style.font_size
        self.style, self.ink = style, ink
        self.chain = FontChain(style.sources(), size, style.hinting, style.horizontal_scale)
        self.shapes = bool(style.shaper())
        # Letters fit this window: 'l' is 0.77 em high, 'p' reaches 0.24 em below the baseline.
        top = math.ceil(0.77 * size)
        self.atlas = Atlas(top, top + math.ceil(0.25 * size))
        self.lock = threading.RLock()
        self.shapers: dict[int, object] = {}  # HarfBuzz fonts by number, see shaping.py
        self._composites: dict[tuple, int] = {}
        self._glyphs: dict[int, Glyph] = {}
        self._kerned: set[int] = set()
        nothing, join = Glyph(_NO_INK, 0, 0, 0), FLAGS["join"]
        self._put(CONTINUE, KINDS["plain"], join, nothing)
        self._put(CONTINUE_UNSHAPED, KINDS["noted"], join | FLAGS["unshaped"], nothing)
        self.resolve([0x20, 0x2D])
        self.space, self.hyphen = (self.glyph(point).advance for point in (0x20, 0x2D))
        self.extent = self.chain.extent()

    def __len__(self) -> int:
        return len(self._composites)

    def resolve(self, units: Iterable[int]) -> None:
        """Add code points to the atlas; those it has are left alone."""
        with self.lock:
            for unit in units:
                if unit < FIRST_COMPOSITE:
                    self._put(unit, *self.describe(unit), self.glyph(unit))

    def describe(self, point: int) -> tuple[int, int]:
        """(kind, flags) of a code point in these fonts."""
        kind, flags = characters.classify(point)
        if kind != KINDS["noted"] and self._inked(point, kind) and self.find(point) is None:
            flags |= FLAGS["missing"]
        if characters.is_mark(point):
            flags |= FLAGS["prepare"]
        if characters.script_to_shape(point):
            flags |= FLAGS["prepare"] if self.shapes else FLAGS["unshaped"]
        if characters.is_isolate(point):  # shaping.py cannot honour it
            flags |= FLAGS["unshaped"]
        if kind == KINDS["plain"] and flags & _REPORTED:
            kind = KINDS["noted"]
        return kind, flags

    def find(self, point: int) -> tuple[int, int] | None:
        """(font, glyph index), or None if the character can only be a box."""
        if characters.is_undrawable(point):
            return None
        with self.lock:
            return self.chain.find(point)

    def glyph(self, point: int) -> Glyph:
        """Ink and advance of a code point: from the fonts, a blank, or the box."""
        with self.lock:
            if point not in self._glyphs:
                self._glyphs[point] = self._make(point)
            return self._glyphs[point]

    def load(self, font: int, index: int) -> Glyph:
        """Glyph by number, its advance rounded as the style says."""
        with self.lock:
            return self._rounded(self.chain.load(font, index, self.ink))

    def composite(self, key: tuple, kind: int, flags: int, parts: Parts, advance: int) -> int:
        """Unit of a cluster; `parts` is only read if the key is new. Raises ValueError if there are
        too many clusters."""
        with self.lock:
            unit = self._composites.get(key)
            if unit is None:
                unit = CONTINUE_UNSHAPED + 1 + len(self._composites)
                if unit >= UNITS:
                    raise ValueError("text: too many different combinations of characters")
                if kind == KINDS["plain"] and flags & _REPORTED:
                    kind = KINDS["noted"]
                self._put(unit, kind, flags, merge(parts, advance))
                self._composites[key] = unit
            return unit

    @staticmethod
    def _inked(point: int, kind: int) -> bool:
        return kind in (KINDS["plain"], KINDS["wide"]) and point not in characters.SPACE_WIDTHS

    def _make(self, point: int) -> Glyph:
        kind, _ = characters.classify(point)
        if kind not in (KINDS["plain"], KINDS["wide"], KINDS["space"]):
            return Glyph(_NO_INK, 0, 0, 0)
        found = self.find(point)
        if found:
            return self._rounded(self.chain.load(*found, self.ink))
        if point in characters.SPACE_WIDTHS:
            em = self.style.font_size * self.style.horizontal_scale
            width = characters.SPACE_WIDTHS[point] * em
            return self._rounded(Glyph(_NO_INK, 0, 0, round(64 * width)))
        box = self.chain.box(point)
        return box if self.ink else Glyph(_NO_INK, 0, 0, box.advance)

    def _rounded(self, glyph: Glyph) -> Glyph:
        if self.style.fractional:
            return glyph
        advance = (glyph.advance + 32) // 64 * 64
        return Glyph(glyph.coverage, glyph.left, glyph.top, advance, glyph.font, glyph.index)

    def _put(self, unit: int, kind: int, flags: int, glyph: Glyph) -> None:
        if self.style.kerning and glyph.font < len(self.chain.sources):
            if glyph.font not in self._kerned:  # before the font's first glyph: see csrc/atlas.h
                self._kerned.add(glyph.font)
                pairs = self.chain.kerning(glyph.font, self.style.fractional)
                self.atlas.set_kerning(glyph.font, pairs)
        self.atlas.add(
            unit,
            kind,
            flags,
            glyph.advance,
            glyph.font,
            glyph.index,
            glyph.left,
            glyph.top,
            glyph.coverage,
        )


class Sheet:
    """A store and a style that it serves: where lines lie on a page (`frame`, for csrc/)."""

    def __init__(self, store: GlyphStore, style: PageStyle):
        self.store, self.style = store, style
        up, down = store.extent
        left, top, _, bottom = style.margins()
        width = style.column_width()
        step = max(1, round(style.line_height * style.font_size))
        # Of the last line only its own height must fit; one line there is on any page.
        self._line, self._around = up + down, top + up + down + bottom
        spacing = round(64 * style.letter_spacing)
        spacing = spacing if style.fractional else (spacing + 32) // 64 * 64
        ink, paper = style.greys()
        self.frame = Frame(  # whole pixels; limit, tab, gap, hyphen and spacing: 26.6 pixels
            width=style.width,
            height=style.height,
            left=left,
            baseline=top + up,
            step=step,
            lines_per_column=1 + max(0, style.height - self._around) // step,
            columns=style.columns,
            column_step=width + style.column_gap,
            align=ALIGN[style.align],
            ink=ink,
            paper=paper,
            spaced=style.kerning or spacing != 0,
            limit=width * 64,
            tab=max(64, style.tab * store.space),
            gap=store.space,
            hyphen=max(0, store.hyphen + spacing),
            spacing=spacing,
            first=style.first_indent,
            hanging=style.hanging_indent,
        )

    def text_height(self, lines: int) -> int:
        """Rows of a page that holds `lines` lines, down to the last of them and the margin."""
        rows = self._around + (min(lines, self.frame.lines_per_column) - 1) * self.frame.step
        return min(self.style.height, rows) if lines else max(1, self._around - self._line)


@lru_cache(maxsize=MOST_STORES)
def _store(glyphs: tuple, shaper: str, process: int) -> GlyphStore:
    return GlyphStore(PageStyle(**dict(zip(GLYPHS, glyphs))))


def store_for(style: PageStyle) -> GlyphStore:
    """The store of this process that styles with these glyphs share; a new one after a fork
    (another thread may have been inside FreeType) and when clusters have piled up."""
    key = tuple(getattr(style, name) for name in GLYPHS), style.shaper(), os.getpid()
    store = _store(*key)
    if len(store) >= MAX_COMPOSITES:
        _store.cache_clear()
        store = _store(*key)
    return store


def over(paper: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """round(paper * (255 - coverage) / 255), as csrc/blend.h composites."""
    t = paper.astype(np.uint32) * (255 - coverage.astype(np.uint32)) + 128
    return (((t >> 8) + t) >> 8).astype(np.uint8)


def merge(parts: Parts, advance: int) -> Glyph:
    """One glyph from several."""
    inked = [(g.coverage, x + g.left, y + g.top) for g, x, y in parts if g.coverage.size]
    if not inked:
        return Glyph(_NO_INK, 0, 0, advance)
    left, top = min(x for _, x, _ in inked), max(y for _, _, y in inked)
    right = max(x + ink.shape[1] for ink, x, _ in inked)
    bottom = min(y - ink.shape[0] for ink, _, y in inked)
    paper = np.full((top - bottom, right - left), 255, np.uint8)
    for ink, x, y in inked:
        under = paper[top - y : top - y + ink.shape[0], x - left : x - left + ink.shape[1]]
        under[:] = over(under, ink)
    return Glyph(255 - paper, left, top, advance)
