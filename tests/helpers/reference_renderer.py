"""The renderer once more, slowly and simply, for tests: freetype-py's own bitmaps, a wrap that
measures every candidate from scratch, and numpy compositing one glyph at a time.

It shares no code with deepsynth_min beyond the font bytes and the names of PageStyle's fields, and
knows the characters of ALPHABET only: no combining marks, no script that needs shaping.
"""

import io
import math
from functools import lru_cache

import freetype
import numpy as np
import pymupdf_fonts
import uharfbuzz

EMBEDDED = ("notos", "symbol2", "symbol1", "math", "figo", "music")
LINE_ENDS = "\n\v\x85\u2028\u2029\r\f"
CLOSING, OPENING = "、。）」！,.)%:;!?”’", "（「(“‘"
QUOTES = "\"'"
WIDE = "漢字仮名あいうアイウ、。（）「」！"
ALPHABET = (
    "abcdefghijlmnoprtuvwxyzABTVWYj.,:;!?()“”‘’\"'%-0123456789éüßñçÅŒ∑√→★♞"
    "   \t\n\u00a0\u00ad\u200b" + LINE_ENDS + WIDE + "\x00\ufeff"
)

_LOAD = {
    "none": freetype.FT_LOAD_NO_HINTING,
    "normal": freetype.FT_LOAD_DEFAULT,
    "light": freetype.FT_LOAD_TARGET_LIGHT,
    "auto": freetype.FT_LOAD_FORCE_AUTOHINT,
}


embedded = lru_cache(pymupdf_fonts.myfont)


class ReferenceRenderer:
    """Pages of a text in a PageStyle: `render(text)` -> (pages [N, H, W], ranges)."""

    def __init__(self, style):
        self.style, self.faces, self.cache, self.shapers = style, [], {}, {}
        files = [open(style.main_font, "rb").read()] if style.main_font else []
        files += [embedded(name) for name in EMBEDDED]
        for data in files + [open(name, "rb").read() for name in style.fonts]:
            face = freetype.Face(io.BytesIO(data))
            wide = round(64 * style.font_size * style.horizontal_scale)
            face.set_char_size(wide, 64 * style.font_size, 72, 72)
            self.faces.append(face)
            self.shapers[face] = lambda data=data: uharfbuzz.Font(uharfbuzz.Face(data))
        size, first = style.font_size, self.faces[0]
        self.up = math.ceil(first.ascender * size / first.units_per_EM)
        self.down = math.ceil(-first.descender * size / first.units_per_EM)
        self.step = max(1, round(style.line_height * size))
        spacing = style.letter_spacing
        self.spacing = (
            round(64 * spacing)
            if style.fractional
            else 64 * math.floor(round(64 * spacing) / 64 + 0.5)
        )
        self.tab = max(64, style.tab * self.glyph(" ")[3])

    def glyph(self, char):
        """(coverage, left, top, advance in 26.6, face)"""
        if char not in self.cache:
            self.cache[char] = self.make(char)
        return self.cache[char]

    def make(self, char):
        blank = np.zeros((0, 0), np.uint8)
        if char in LINE_ENDS + "\t\u00ad\u200b\ufeff":
            return blank, 0, 0, 0, None
        size = self.style.font_size
        for face in self.faces if char != "\x00" else ():
            index = face.get_char_index(char)
            if not index:
                continue
            flags = _LOAD[self.style.hinting] | freetype.FT_LOAD_NO_BITMAP
            face.load_glyph(index, flags | freetype.FT_LOAD_RENDER)
            bitmap, advance = face.glyph.bitmap, face.glyph.advance.x
            rows = np.array(bitmap.buffer, np.uint8).reshape(bitmap.rows, bitmap.pitch)
            if not self.style.fractional:
                advance = math.floor(advance / 64 + 0.5) * 64
            place = face.glyph.bitmap_left, face.glyph.bitmap_top
            return rows[:, : bitmap.width], *place, advance, face
        em = size * self.style.horizontal_scale
        width = max(1, round(em if char in WIDE else 0.6 * em))
        side, stroke = max(1, width - 2), max(1, size // 16)
        box = np.full((max(1, round(0.7 * size)), side), 255, np.uint8)
        box[stroke:-stroke, stroke:-stroke] = 0
        return box, (width - side) // 2, len(box), width * 64, None

    def kern(self, left, right):
        a, b = self.glyph(left), self.glyph(right)
        if not self.style.kerning or a[4] is None or a[4] is not b[4]:
            return 0
        if a[4].has_kerning:
            return a[4].get_kerning(left, right).x
        step = 1 if self.style.fractional else 64
        em = 64 * self.style.font_size / a[4].units_per_EM * self.style.horizontal_scale
        moved = self.gpos(a[4], left, right) * em
        return math.floor(moved / step + 0.5) * step

    def gpos(self, face, left, right):
        """Font units by which HarfBuzz moves the right one of two characters."""
        if callable(self.shapers[face]):
            self.shapers[face] = self.shapers[face]()
        key = face, left, right
        if key not in self.cache:
            buffer, shaper = uharfbuzz.Buffer(), self.shapers[face]
            buffer.add_str(left + right)
            buffer.guess_segment_properties()
            buffer.direction = "ltr"
            uharfbuzz.shape(shaper, buffer, dict.fromkeys(("liga", "clig", "calt"), False))
            alone = shaper.get_glyph_h_advance(face.get_char_index(left))
            self.cache[key] = buffer.glyph_positions[0].x_advance - alone
        return self.cache[key]

    def pens(self, text):
        """Pen before each character, and after the last, from the start of a line."""
        pens = [0]
        for i, char in enumerate(text):
            if i and (before := self.glyph(text[i - 1])[3]):
                pens[-1] += max(self.spacing, -before)
            if char == "\t":
                stop = (pens[-1] // self.tab + 1) * self.tab
                gap = self.glyph(" ")[3]
                pens.append(stop if stop - pens[-1] >= gap else max(stop + self.tab, pens[-1] + 1))
                continue
            if i:
                pens[-1] += self.kern(text[i - 1], char)
            pens.append(pens[-1] + self.glyph(char)[3])
        return pens

    def visible_width(self, line, hyphen):
        """Of what is seen of a line: `line`, without blanks at its end, and the hyphen."""
        return self.pens(line)[-1] + (self.hyphen() if hyphen else 0)

    def hyphen(self):
        return max(0, self.glyph("-")[3] + self.spacing)

    def limit(self, is_first):
        """Room of a line, 26.6."""
        return 64 * (self.style.column_width() - self.indent(is_first))

    def indent(self, is_first):
        return self.style.first_indent if is_first else self.style.hanging_indent

    def fits(self, text, hyphen, limit):
        if hyphen:
            text = text.removesuffix("\u00ad")
        else:  # what has no ink, or no width, never overflows
            text = text.rstrip(" \t\u200b\u00ad\ufeff")
            while text and not self.glyph(text[-1])[3]:
                text = text[:-1].rstrip(" \t\u200b\u00ad\ufeff")
        if self.visible_width(text, hyphen) <= limit:
            return True
        inked = [i for i, char in enumerate(text) if self.glyph(char)[3] and char not in " \t"]
        return not hyphen and bool(inked) and self.pens(text[: inked[-1]])[-1] <= 0

    @staticmethod
    def breaks(text):
        """{position: hyphen shown} where a line of this paragraph may end."""
        found = {}
        for i in range(1, len(text)):
            before, after = text[i - 1], text[i]
            if before in " \t\u200b":
                found[i] = False
            elif before == "\u00ad":
                found[i] = True
            elif (before in WIDE or after in WIDE) and after not in " \t\u200b\u00ad\ufeff\u00a0":
                no_end = before in OPENING + QUOTES + "\u00a0\ufeff"
                if not no_end and after not in CLOSING + QUOTES + "-":
                    found[i] = False
        if text and text[-1] in " \t\u200b":
            found[len(text)] = False
        return found

    def wrap(self, text):
        """Lines (start, visible end, next start, hyphen, wrapped, page end) of a text."""
        lines, at = [], 0
        while at < len(text):
            end = next((i for i in range(at, len(text)) if text[i] in LINE_ENDS), len(text))
            after = end + (2 if text[end : end + 2] == "\r\n" else 1)
            breaks, start, limit = self.breaks(text[at:end]), at, self.limit(True)
            while start < end and not self.fits(text[start:end], False, limit):
                later = [(b + at, hyphen) for b, hyphen in breaks.items() if b + at > start]
                good = [b for b, hyphen in later if self.fits(text[start:b], hyphen, limit)]
                if good:
                    stop = max(good)
                    hyphen = breaks[stop - at]
                else:
                    stop, hyphen = start + 1, False
                    while self.fits(text[start : stop + 1], False, limit):
                        stop += 1
                kept = text[start:stop].rstrip(" \t\u200b").removesuffix("\u00ad" * hyphen)
                shown = start + len(kept)
                lines.append((start, shown, stop, hyphen, True, False))
                start, limit = stop, self.limit(False)
            if start < end or at == end:
                shown = start + len(text[start:end].rstrip(" \t\u200b"))
                lines.append((start, shown, after, False, False, text[end : end + 1] == "\f"))
            at = min(after, len(text))
        return lines

    def render(self, text):
        style = self.style
        left, top, _, bottom = style.margins()
        free = style.height - top - bottom - self.up - self.down
        rows = 1 + max(0, free) // self.step
        pages, ranges, page, count, is_first = [], [], None, 0, True
        for start, shown, after, hyphen, wrapped, ends_page in self.wrap(text):
            if page is None:
                page, count = np.full((style.height, style.width), 255, np.uint8), 0
                ranges.append([start, start])
            x = left + count // rows * (style.column_width() + style.column_gap)
            y = top + self.up + count % rows * self.step
            line = text[start:shown]
            free = max(0, self.limit(is_first) - self.visible_width(line, hyphen)) // 64
            x += self.indent(is_first) + {"right": free, "center": free // 2}.get(style.align, 0)
            stretch = self.stretches(line, free) if wrapped and style.align == "justify" else {}
            is_first = not wrapped
            self.draw(page, line + "-" * hyphen, x, y, stretch, len(line))
            count, ranges[-1][1] = count + 1, min(after, len(text))
            if count == rows * style.columns or ends_page:
                pages.append(page)
                page = None
        if page is not None or not pages:
            pages.append(
                np.full((style.height, style.width), 255, np.uint8) if page is None else page
            )
        pages = np.stack(pages)
        ink, paper = style.ink, style.paper
        grey = (2 * (ink * (255 - pages.astype(int)) + paper * pages.astype(int)) + 255) // 510
        pages = (255 - grey if style.invert else grey).astype(np.uint8)
        return pages, ranges or [[0, 0]]

    @staticmethod
    def stretches(line, pixels):
        """{index of a space: 26.6 pixels to add} of a justified line that leaves `pixels` free."""
        first = line.rfind("\t") + 1
        while first < len(line) and line[first] == " ":
            first += 1
        spaces = [i for i in range(first, len(line)) if line[i] == " "]
        marks = [pixels * k // max(1, len(spaces)) for k in range(len(spaces) + 1)]
        return {i: 64 * (marks[k + 1] - marks[k]) for k, i in enumerate(spaces)}

    def draw(self, page, line, x, y, stretch, length):
        pens, shift = self.pens(line[:length]), 0
        if len(line) > length:  # the hyphen of a soft hyphen: never kerned
            pens[-1] += self.hyphen() - self.glyph("-")[3]
        for i, char in enumerate(line):
            coverage, left, top, *_ = self.glyph(char)
            pen = pens[i] + shift
            if coverage.size:
                composite(page, coverage, x + math.floor(pen / 64 + 0.5) + left, y - top)
            shift += stretch.get(i, 0)


def composite(page, coverage, x, y):
    """t = paper*(255-coverage)+128; ((t>>8)+t)>>8 on the part of the page that there is."""
    height, width = page.shape
    x0, y0 = max(0, x), max(0, y)
    x1, y1 = min(width, x + coverage.shape[1]), min(height, y + coverage.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    paper = page[y0:y1, x0:x1].astype(np.int64)
    t = paper * (255 - coverage[y0 - y : y1 - y, x0 - x : x1 - x].astype(np.int64)) + 128
    page[y0:y1, x0:x1] = ((t >> 8) + t) >> 8
