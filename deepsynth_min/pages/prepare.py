"""Text -> units: whatever is not one glyph per character, rewritten before layout.

In: a str and the glyph store. Out: uint32 [characters], as long as the text, so that every offset
stays what it was: newline marks, collapsed spaces, marks on their bases, shaped clusters.
Plain text never comes here; layout asks for it when it meets a character that needs it.
"""

import unicodedata
from collections.abc import Iterator

import numpy as np

from .._raster import FIRST_COMPOSITE, FLAGS, KINDS
from . import characters
from .fonts.font import Glyph
from .glyphs import CONTINUE, CONTINUE_UNSHAPED, GlyphStore
from .shaping import Order, shape

_LINE_ENDS = (0x0A, 0x0B, 0x0D, 0x85, 0x2028, 0x2029)
_NO_BASE = _LINE_ENDS + (0x09, 0x0C)
_ABOVE, _BELOW = 230, 220  # canonical combining classes
_BLANK = 0xA0
_MAX_MARKS = 30  # on one base, as in Unicode's stream-safe text


def prepare(text: str, store: GlyphStore) -> tuple[np.ndarray, Order | None]:
    """The units of a text, and the bidi order of its characters if it has one."""
    units = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).copy()
    if store.style.newline_mark:
        mark_newlines(units, store)
    if store.style.spaces == "collapse":
        collapse_spaces(units)
    order = shape(text, units, store) if store.shapes else None
    place_marks(units, store)
    return units, order


def mark_newlines(units: np.ndarray, store: GlyphStore) -> None:
    """Each line end becomes the visible mark, after which a line may break."""
    ends = np.isin(units, _LINE_ENDS)
    second = np.zeros_like(ends)
    second[1:] = (units[1:] == 0x0A) & (units[:-1] == 0x0D)
    mark = store.style.newline_mark
    glyphs = [store.glyph(ord(char)) for char in mark]
    flags = FLAGS["missing"] * any(store.describe(ord(c))[1] & FLAGS["missing"] for c in mark)
    pens = np.cumsum([0] + [glyph.advance for glyph in glyphs])
    parts = [(glyph, int(pen + 32) >> 6, 0) for glyph, pen in zip(glyphs, pens)]
    unit = store.composite(("newline",), KINDS["ink_break"], flags, parts, int(pens[-1]))
    units[ends] = unit
    units[second] = CONTINUE


def collapse_spaces(units: np.ndarray) -> None:
    """A run of spaces and tabs counts as its last one; at the start of a line as nothing."""
    blank = np.isin(units, (0x20, 0x09))
    before_blank = np.zeros_like(blank)
    before_blank[:-1] = blank[1:]
    starts = np.ones_like(blank)
    starts[1:] = np.isin(units[:-1], _LINE_ENDS + (0x0C,))
    run = np.cumsum(blank & ~np.roll(blank, 1) | starts)  # number of the run a blank belongs to
    leading = np.isin(run, run[starts & blank])
    units[blank & (before_blank | leading)] = CONTINUE
    units[blank & ~before_blank & ~leading] = 0x20


def place_marks(units: np.ndarray, store: GlyphStore) -> None:
    """Combining marks join the unit before them: as a precomposed character where the fonts have
    it, else drawn over it as one cluster. Marks without a base, or beyond _MAX_MARKS, stand on a
    blank of their own; marks that no font has stay what they are: boxes."""
    present = [int(u) for u in np.unique(units) if u < FIRST_COMPOSITE]
    marks = np.isin(units, [unit for unit in present if characters.is_mark(unit)])
    edges = np.flatnonzero(np.diff(np.concatenate(([0], marks.view(np.int8), [0]))))
    known: dict[tuple, tuple[int, list[int]]] = {}
    for start, end in edges.reshape(-1, 2).tolist():
        base = start - 1
        while base >= 0 and characters.is_invisible(int(units[base])):
            base -= 1
        for at in range(start, end, _MAX_MARKS):
            cluster = units[at : min(end, at + _MAX_MARKS)].tolist()
            if at > start or base < 0 or units[base] in _NO_BASE or units[base] >= FIRST_COMPOSITE:
                base = -1
            key = (int(units[base]) if base >= 0 else _BLANK, *cluster)
            if key not in known:
                known[key] = _cluster(key[0], cluster, store)
            unit, left_over = known[key]
            drawn = [at + k for k, mark in enumerate(cluster) if mark not in left_over]
            if drawn:
                units[drawn] = [_continued(cluster[k - at], store) for k in drawn]
                units[base if base >= 0 else drawn[0]] = unit


def _continued(mark: int, store: GlyphStore) -> int:
    return CONTINUE_UNSHAPED if store.describe(mark)[1] & FLAGS["unshaped"] else CONTINUE


def _cluster(base: int, marks: list[int], store: GlyphStore) -> tuple[int, list[int]]:
    """(unit for the base and its marks, marks that it does not contain)"""
    composed = unicodedata.normalize("NFC", "".join(map(chr, [base, *marks])))
    if composed[0] != chr(base) and all(store.find(ord(char)) for char in composed):
        base, marks = ord(composed[0]), [ord(char) for char in composed[1:]]
    drawn = [mark for mark in marks if store.find(mark) and not _is_jamo(mark)]
    left_over = [mark for mark in marks if mark not in drawn]
    if not drawn:
        return base, left_over
    kind, flags = store.describe(base)
    for mark in drawn:
        flags |= store.describe(mark)[1] & FLAGS["unshaped"]
    if kind == KINDS["space"]:
        kind = KINDS["plain"]
    glyphs = [store.glyph(point) for point in (base, *drawn)]
    flags &= ~FLAGS["prepare"]
    parts = _stack(glyphs, [unicodedata.combining(chr(mark)) for mark in drawn])
    return store.composite((base, *drawn), kind, flags, parts, glyphs[0].advance), left_over


def _is_jamo(point: int) -> bool:
    return 0x1100 <= point <= 0x11FF or 0xD7B0 <= point <= 0xD7FF


def _stack(glyphs: list[Glyph], classes: list[int]) -> Iterator[tuple[Glyph, int, int]]:
    """(glyph, x, y) of a base and its marks: centred on the base; marks above go up and marks below
    go down until they are clear of what is there."""
    base, marks = glyphs[0], glyphs[1:]
    yield base, 0, 0
    pen = (base.advance + 32) >> 6
    height, width = base.coverage.shape
    middle = base.left + width / 2 if width else pen / 2
    top, bottom = (base.top, base.top - height) if height else (0, 0)
    gap = max(1, height // 12)
    for mark, place in zip(marks, classes):
        rows, columns = mark.coverage.shape
        x, y = round(middle - columns / 2) - mark.left, 0
        if place == _ABOVE and height:
            y = max(0, top + gap - (mark.top - rows))
            top = max(top, mark.top + y)
        elif place == _BELOW and height:
            y = min(0, bottom - gap - mark.top)
            bottom = min(bottom, mark.top - rows + y)
        yield mark, x, y
