"""Text -> pages: uint8 [N, height, width], 255 paper and 0 ink, and what became of each character.

In: str and a `PageStyle`. Out: `Pages`: the drawn pages, the range of text that each holds, and
every character that could not be drawn as it should. The one idea: csrc/ lays out, then draws, a
whole batch at a time; Python only adds glyphs that are new and rewrites text that needs it. A page
is drawn in csrc/draw.h (`draw_page`), its pixels are changed in csrc/blend.h.

    pages = render_pages("some text", PageStyle(width=640, height=640))
    several = render_batch(texts, style, threads=2)      # one [N, H, W] behind all of them

`python -m deepsynth_min.render FILE` writes previews as PNG files.
"""

import os
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .._raster import FLAGS, Plan, empty_pages
from ..errors import number_of
from .characters import script_to_shape
from .glyphs import MAX_COMPOSITES, GlyphStore, Sheet, store_for
from .prepare import prepare
from .shaping import reorder
from .style import PageStyle

__all__ = ["PageStyle", "Pages", "Renderer", "fit", "line_ranges", "render_batch", "render_pages"]

_NEEDS_PREPARATION = 2  # Status in csrc/layout.h


class TooManyPages(ValueError):
    """A text needs more pages than the style allows."""


@dataclass(frozen=True)
class Pages:
    """A drawn text. Positions are offsets in its str; they count characters, not bytes."""

    pages: np.ndarray  # uint8 [N, height, width]
    ranges: np.ndarray  # int64 [N, 2]: (start, end) of each page; together they tile the text
    missing: np.ndarray  # int64 positions of characters drawn as a box: no font has them
    unshaped: np.ndarray  # int64 positions of characters whose script was drawn without shaping
    invisible: np.ndarray  # int64 positions of characters that by definition draw nothing
    clipped: int  # glyphs of which the page's edge cut something off
    truncated: int  # characters after the last page, with overflow = truncate
    text_height: int  # rows of the last page down to its last line
    style: PageStyle  # what was used; its font_size is smaller after overflow = shrink

    def __len__(self) -> int:
        return len(self.pages)

    def images(self) -> list[np.ndarray]:
        """The pages one by one [height, width]; the last is cropped if the style says so."""
        images = list(self.pages)
        if self.style.crop_last:
            images[-1] = images[-1][: self.text_height]
        return images


class Renderer:
    """Draws text in one style; styles with the same letters share their glyphs. Safe to share among
    threads; a child process made by fork starts its own glyphs; pickles as its style."""

    def __init__(self, style: PageStyle = PageStyle()):
        self.style = style
        self._lock = threading.Lock()
        self._state: tuple[int, Sheet | None] = (0, None)  # (process, its sheet), set at once
        self._current()

    def __reduce__(self):
        return Renderer, (self.style,)

    def render_pages(self, text: str, out: np.ndarray | None = None) -> Pages:
        """Pages of one text; see render_batch."""
        return self.render_batch([text], out=out)[0]

    def render_batch(
        self, texts: Iterable[str], out: np.ndarray | None = None, threads: int = 1
    ) -> list[Pages]:
        """Pages of several texts, drawn into one contiguous array [N, height, width] of which each
        result holds a view, in order.

        out: uint8 [>= N, height, width], contiguous and writable, to draw into; without it memory
        comes from a pool, to which it returns with the last view of it. threads: 0 means one per
        core. Raises ValueError if a text needs more than max_pages, if on_missing is `error` and a
        character is missing, or if out does not fit.
        """
        texts = list(texts)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("text: must be str")
        if threads < 0:
            raise ValueError(f"threads: {threads} must not be negative")
        threads = threads or cores()
        if self.style.max_pages and self.style.overflow == "shrink":
            return self._render_shrunk(texts, out, threads)
        layout = _Layout(self._current(), texts, threads)
        layout.check()
        if out is None:
            out = empty_pages(layout.plan.number_pages(), *self._shape())
        layout.plan.draw(out, threads)
        return layout.results(out)

    def count_pages(self, text: str) -> int:
        """How many pages a text needs, without drawing it (max_pages does not count)."""
        return _Layout(self._current(), [text], 1, limit=0).plan.pages(0)

    def _render_shrunk(self, texts: list[str], out: np.ndarray | None, threads: int) -> list[Pages]:
        style = self.style
        sizes = [
            style.font_size
            if self.count_pages(text) <= style.max_pages
            else fit(text, style, style.max_pages, style.min_font_size, style.font_size - 1)
            for text in texts
        ]
        if any(size is None for size in sizes):
            raise ValueError(
                f"max_pages: {style.max_pages} are too few for text "
                f"{sizes.index(None)} at font size {style.min_font_size}"
            )
        groups = [
            _Layout(_renderer(style.at_size(size))._current(), [text], 1)
            for text, size in zip(texts, sizes)
        ]
        counts = [layout.plan.number_pages() for layout in groups]
        for layout in groups:
            layout.check()
        if out is None:
            out = empty_pages(sum(counts), *self._shape())
        elif len(out) < sum(counts):
            raise ValueError(f"out: shape must be [>= {sum(counts)}, height, width]")
        ends = np.cumsum(counts)
        slices = [out[end - count : end] for end, count in zip(ends, counts)]
        for layout, pages in zip(groups, slices):
            layout.plan.draw(pages, threads)
        return [layout.results(pages)[0] for layout, pages in zip(groups, slices)]

    def _shape(self) -> tuple[int, int]:
        return self.style.height, self.style.width

    def _current(self) -> Sheet:
        """The style over a glyph store of this process that is not full; see `store_for`."""
        owner, sheet = self._state
        if owner == os.getpid() and len(sheet.store) < MAX_COMPOSITES:
            return sheet
        if owner != os.getpid():
            self._lock = threading.Lock()
        with self._lock:
            owner, sheet = self._state
            if owner != os.getpid() or len(sheet.store) >= MAX_COMPOSITES:
                sheet = Sheet(store_for(self.style), self.style)
                self._state = (os.getpid(), sheet)
            return sheet


class _Layout:
    """Texts laid out, every character resolved, nothing drawn."""

    def __init__(self, sheet: Sheet, texts: list[str], threads: int, limit: int | None = None):
        self.sheet, self.style, self.texts = sheet, sheet.style, texts
        self.store = store = sheet.store
        if limit is None:
            limit = self.style.max_pages if self.style.overflow == "truncate" else 0
        self.plan = Plan(store.atlas, sheet.frame, limit)
        pending = self.plan.layout(texts, threads)
        rewrites = bool(self.style.newline_mark) or self.style.spaces == "collapse"
        if rewrites:
            pending = [(i, _NEEDS_PREPARATION) for i in range(len(texts))]
        units: dict[int, np.ndarray] = {}
        orders = {}
        while pending:
            for i, status in pending:
                if status == _NEEDS_PREPARATION:
                    units[i], orders[i] = prepare(texts[i], store)
                    self.plan.replace(i, units[i])
                store.resolve(store.atlas.unresolved(units.get(i, texts[i])))
            pending = self.plan.layout_again([i for i, _ in pending], threads)
        for i, order in orders.items():
            if order is not None:
                reorder(self.plan, i, units[i], order)

    def check(self) -> None:
        """Raise what the style forbids, before anything is drawn."""
        style = self.style
        for i, text in enumerate(self.texts):
            pages = self.plan.pages(i)
            if style.max_pages and style.overflow != "truncate" and pages > style.max_pages:
                raise TooManyPages(
                    f"max_pages: {style.max_pages} are too few, text {i} needs {pages}"
                )
            if style.on_missing == "error":
                _, positions, flags, *_ = self.plan.result(i)
                lost = positions[flags & FLAGS["missing"] != 0]
                if len(lost):
                    chars = sorted({text[p] for p in lost})[:10]
                    raise ValueError(
                        f"text {i}: no font has {number_of(len(lost), 'character')}, first at "
                        f"{lost[0]}: {ascii(''.join(chars))}"
                    )
            if style.shaping == "require" and not self.store.shapes:
                at = next((k for k, char in enumerate(text) if script_to_shape(ord(char))), None)
                if at is not None:
                    raise ValueError(
                        f"text {i}: {script_to_shape(ord(text[at]))} at {at} needs "
                        "shaping: pip install deepsynth-min[shaping]"
                    )

    def results(self, out: np.ndarray) -> list[Pages]:
        """One Pages per text, after drawing into `out`."""
        results, first = [], 0
        for i, text in enumerate(self.texts):
            ranges, positions, flags, clipped, _, lines = self.plan.result(i)
            noted = [
                positions[flags & FLAGS[name] != 0] if len(flags) else positions
                for name in ("missing", "unshaped", "invisible")
            ]
            pages = out[first : first + len(ranges)]
            truncated = len(text) - int(ranges[-1, 1])
            height = self.sheet.text_height(lines)
            results.append(Pages(pages, ranges, *noted, clipped, truncated, height, self.style))
            first += len(ranges)
        return results


def cores() -> int:
    """Cores that this process may use, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@lru_cache(maxsize=64)
def _renderer(style: PageStyle) -> Renderer:
    return Renderer(style)


@lru_cache(maxsize=256)
def _measures(style: PageStyle, process: int) -> Sheet:
    """Advances alone, for fit; of this process, as in Renderer._current."""
    return Sheet(GlyphStore(style, ink=False), style)


def render_pages(text: str, style: PageStyle = PageStyle(), out: np.ndarray | None = None) -> Pages:
    """Pages of a text: uint8 [N, height, width]; an empty text is one blank page. Renderers are
    cached by style. See Renderer.render_batch for `out` and what is raised."""
    return _renderer(style).render_pages(text, out)


def line_ranges(text: str, style: PageStyle = PageStyle()) -> list[tuple[int, int]]:
    """Of each line of a text's pages, one page after another, where in the text it starts and
    stops; at the style's own font size, whatever `overflow` says."""
    lines = _Layout(_renderer(style)._current(), [text], 1).plan.lines(0)
    return [(start, stop) for start, stop, _, _ in lines.tolist()]


def undrawn(text: str, style: PageStyle = PageStyle()) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the characters that (no font has, are drawn without the shaping that their
    script needs), as in Pages; layout only."""
    _, positions, flags, *_ = _Layout(_renderer(style)._current(), [text], 1).plan.result(0)
    if not len(flags):
        return positions, positions
    missing, unshaped = (flags & FLAGS[name] != 0 for name in ("missing", "unshaped"))
    return positions[missing], positions[unshaped]


def render_batch(
    texts: Iterable[str],
    style: PageStyle = PageStyle(),
    threads: int = 1,
    out: np.ndarray | None = None,
) -> list[Pages]:
    """Pages of several texts in one contiguous array; see Renderer.render_batch."""
    return _renderer(style).render_batch(texts, out, threads)


def fit(
    text: str, style: PageStyle, pages: int, smallest: int = 6, largest: int = 64
) -> int | None:
    """The largest font size in smallest..largest at which the text needs at most `pages` pages, or
    None. Layout only: no glyph is drawn. Every size from the top is tried, because whole-pixel
    advances make the number of lines not quite monotonic; a size that is too large stops early.
    Raises ValueError for pages or sizes below 1."""
    for name, value in (("pages", pages), ("smallest", smallest)):
        if value < 1:
            raise ValueError(f"{name}: {value} must be at least 1")
    for size in range(largest, smallest - 1, -1):
        sheet = _measures(style.at_size(size), os.getpid())
        if len(sheet.store) >= MAX_COMPOSITES:
            _measures.cache_clear()
        layout = _Layout(sheet, [text], 1, limit=pages)
        if layout.plan.result(0)[4]:
            return size
    return None
