"""Scripts that join, stack or run from right to left: text -> shaped clusters in visual order.

In: a text and its units. Out: units in which each shaped cluster is one composite, and bidi levels;
after layout, the units of each line in the order in which they are drawn. HarfBuzz (uharfbuzz) says
which glyphs go where, python-bidi resolves the levels of UAX #9; both are the extra `shaping`.
The one idea: wrapping needs logical order and advances only, so shaping comes before it and
reordering after, and neither concerns csrc/.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from unicodedata import bidirectional

import numpy as np

from .._raster import FLAGS, KINDS, Plan
from . import characters
from .fonts.font_file import font_bytes, parse
from .glyphs import CONTINUE, GlyphStore

# What python-bidi resolves; its rules stop before the isolates of Unicode 6.3.
_BIDI_TYPES = frozenset("L R AL EN ES ET AN CS NSM BN S WS ON LRE RLE LRO RLO PDF".split())
_PARAGRAPH = re.compile("[^\n\v\f\r\x85\u2028\u2029]+")
_WORD_KINDS = (KINDS["plain"], KINDS["noted"], KINDS["wide"])


@dataclass
class Order:
    """What reordering needs: bidi level of each character, and of its paragraph. [characters]"""

    levels: np.ndarray
    base: np.ndarray


def shape(text: str, units: np.ndarray, store: GlyphStore) -> Order | None:
    """Put shaped clusters into `units`; None if no paragraph needs it."""
    order = None
    for match in _PARAGRAPH.finditer(text):
        paragraph, start = match.group(), match.start()
        if not any(characters.script_to_shape(ord(char)) for char in set(paragraph)):
            continue
        if order is None:
            order = Order(np.zeros(len(text), np.uint8), np.zeros(len(text), np.uint8))
        base, levels = bidi_levels(paragraph)
        order.base[start : match.end()] = base
        order.levels[start : match.end()] = levels
        for low, high, font in _runs(paragraph, levels, store):
            right_to_left = bool(levels[low] % 2)
            _shape_run(paragraph[low:high], right_to_left, font, units[start + low :], store)
    return order


def bidi_levels(paragraph: str) -> tuple[int, np.ndarray]:
    """(level of the paragraph, level of each character), UAX #9 rules P2 to I2."""
    from bidi import algorithm

    # Isolates and unassigned characters count as neutral.
    paragraph = "".join(c if bidirectional(c) in _BIDI_TYPES else "\ufffc" for c in paragraph)
    storage = algorithm.get_empty_storage()
    storage["base_level"] = base = algorithm.get_base_level(paragraph)
    storage["base_dir"] = "LR"[base]
    algorithm.get_embedding_levels(paragraph, storage)
    for at, char in enumerate(storage["chars"]):
        char["at"] = at  # explicit controls are about to be removed
    algorithm.explicit_embed_and_overrides(storage)
    algorithm.resolve_weak_types(storage)
    algorithm.resolve_neutral_types(storage, False)
    algorithm.resolve_implicit_levels(storage, False)
    levels = np.full(len(paragraph), 255, np.uint8)
    for char in storage["chars"]:
        levels[char["at"]] = char["level"]
    for at in np.flatnonzero(levels == 255):
        levels[at] = levels[at - 1] if at else base
    return base, levels


def _runs(paragraph: str, levels: np.ndarray, store: GlyphStore) -> Iterator[tuple[int, int, int]]:
    """(start, end, font) of what is shaped as one: same font, level and script, no space inside."""
    previous, start = None, 0
    for at, char in enumerate(paragraph):
        key = _run_key(ord(char), int(levels[at]), previous, store)
        if key != previous:
            if previous is not None:
                yield start, at, previous[0]
            previous, start = key, at
    if previous is not None:
        yield start, len(paragraph), previous[0]


RunKey = tuple[int, int, str]  # font, level, script


def _run_key(point: int, level: int, previous: RunKey | None, store: GlyphStore) -> RunKey | None:
    """What characters of one run have in common; None for what stays as it is."""
    if (
        previous is not None
        and level == previous[1]
        and (
            characters.is_invisible(point)
            or characters.is_mark(point)
            and store.chain.face(previous[0]).get_char_index(point)
        )
    ):
        return previous
    script, found = characters.script_to_shape(point), store.find(point)
    kind, _ = characters.classify(point)
    if found is None or kind not in _WORD_KINDS or not (script or level % 2):
        return None
    return found[0], level, script or (previous[2] if previous else "")


def _shape_run(
    run: str, right_to_left: bool, font: int, units: np.ndarray, store: GlyphStore
) -> None:
    """Replace units[: len(run)] by one composite per cluster."""
    import uharfbuzz

    with store.lock:
        if font not in store.shapers:
            source = store.chain.sources[font]
            name, data = parse(source), font_bytes(source)
            store.shapers[font] = shaper = uharfbuzz.Font(uharfbuzz.Face(data, name.number))
            em = store.style.font_size * 64
            shaper.scale = (round(em * store.style.horizontal_scale), em)
            if name.axes:
                shaper.set_variations(dict(name.axes))
        buffer = uharfbuzz.Buffer()
        buffer.add_str(run)
        buffer.direction = "rtl" if right_to_left else "ltr"
        buffer.guess_segment_properties()
        uharfbuzz.shape(store.shapers[font], buffer)
    clusters: dict[int, list] = {}
    for info, place in zip(buffer.glyph_infos, buffer.glyph_positions):
        clusters.setdefault(info.cluster, []).append((info.codepoint, place))
    for at, char in enumerate(run):
        if not characters.is_invisible(ord(char)):  # those stay, to be reported
            units[at] = CONTINUE
    for at, glyphs in clusters.items():
        units[at] = _composite(ord(run[at]), font, glyphs, store)


def _composite(point: int, font: int, glyphs: list, store: GlyphStore) -> int:
    """Unit of one cluster; `glyphs` are (glyph index, position) in visual order."""
    pen, placed = 0, []
    for index, place in glyphs:
        x, y = (pen + place.x_offset + 32) >> 6, (place.y_offset + 32) >> 6
        placed.append((index, x, y))
        pen += place.x_advance
    if not store.style.fractional:
        pen = (pen + 32) // 64 * 64
    kind, flags = characters.classify(point)
    if kind == KINDS["noted"]:
        kind = KINDS["plain"]
    flags &= FLAGS["no_start"] | FLAGS["no_end"] | FLAGS["glue"]
    if any(index == 0 for index, _ in glyphs):
        flags |= FLAGS["missing"]
    parts = ((store.load(font, index), x, y) for index, x, y in placed)
    key = ("shaped", font, kind, flags, max(0, pen), *placed)
    return store.composite(key, kind, flags, parts, max(0, pen))


def visual_order(levels: np.ndarray) -> np.ndarray:
    """Indices of a line's characters from left to right: rule L2 of UAX #9."""
    order = np.arange(len(levels))
    for level in range(int(levels.max(initial=0)), 0, -1):
        inside = levels >= level
        edges = np.flatnonzero(np.diff(np.concatenate(([0], inside.view(np.int8), [0]))))
        for low, high in edges.reshape(-1, 2):
            order[low:high] = order[low:high][::-1]
    return order


def reorder(plan: Plan, text: int, units: np.ndarray, order: Order) -> None:
    """After layout: draw the lines of text number `text` in visual order; lines of right-to-left
    paragraphs end at the right edge of a column."""
    drawn = units.copy()
    for number, (start, stop, *_) in enumerate(plan.lines(text).tolist()):
        if start == stop or not order.levels[start:stop].any():
            continue
        drawn[start:stop] = units[start:stop][visual_order(order.levels[start:stop])]
        if order.base[start]:
            plan.from_right(text, number)
    plan.replace(text, drawn)
