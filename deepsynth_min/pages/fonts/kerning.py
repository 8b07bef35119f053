"""A font's kerning: (left glyph, right glyph, font units) of every pair that moves.

In: the bytes of a font and its number in a collection. Out: pairs of its `kern` table, or of the
PairPos lookups that the `kern` feature of its GPOS table names, in whatever script.

The one idea: a pair's correction depends on two glyph numbers alone, so all of them can be listed
before the first page; csrc/kerning.h looks them up. Contextual kerning (lookup type 8) is not a
list of pairs and is left out, as are the variations of a variable font's kerning.
Source: the OpenType specification, chapters `kern`, GPOS and "Common table formats".
"""

from collections.abc import Iterator

import numpy as np

_PAIR, _EXTENSION, _X_ADVANCE = 2, 9, 0x0004
_MOST = 256  # features, lookups of one and subtables of one; more is a damaged table


class _Table:
    """Bytes from some offset on; all numbers are big-endian."""

    def __init__(self, data: bytes, start: int = 0):
        self.data, self.start = data, start

    def u16(self, at: int) -> int:
        return int.from_bytes(self.data[self.start + at : self.start + at + 2], "big")

    def u32(self, at: int) -> int:
        return int.from_bytes(self.data[self.start + at : self.start + at + 4], "big")

    def array(self, at: int, count: int, columns: int = 1, kind: str = ">u2") -> np.ndarray:
        """[count, columns] of 16-bit numbers; fewer rows where the table ends before."""
        found = np.frombuffer(self.data, np.uint8)[self.start + at :][: 2 * count * columns]
        found = found[: len(found) // (2 * columns) * 2 * columns]
        return found.view(kind).reshape(-1, columns).astype(np.int64)

    def below(self, at: int) -> "_Table":
        """The table to which the offset at `at` points."""
        return _Table(self.data, self.start + self.u16(at))


def _find(data: bytes, number: int, tag: bytes) -> _Table | None:
    font = _Table(data, _Table(data).u32(12 + 4 * number) if data[:4] == b"ttcf" else 0)
    for entry in range(font.start + 12, font.start + 12 + 16 * font.u16(4), 16):
        if data[entry : entry + 4] == tag:
            return _Table(data, _Table(data, entry).u32(8))
    return None


def kern_pairs(data: bytes, number: int = 0) -> set[tuple[int, int]]:
    """Glyph pairs of all horizontal format 0 subtables of a TrueType `kern` table (version 0)."""
    table, pairs = _find(data, number, b"kern"), set()
    if table is None or table.u16(0) != 0:
        return pairs
    subtable = 4
    for _ in range(table.u16(2)):
        length, coverage, count = (table.u16(subtable + at) for at in (2, 4, 6))
        if coverage >> 8 == 0 and coverage & 1:
            pairs |= set(map(tuple, table.array(subtable + 14, count, 3)[:, :2].tolist()))
        subtable += length
    return pairs


def gpos_pairs(data: bytes, number: int, glyphs: set[int]) -> dict[tuple[int, int], int]:
    """(left, right) -> font units, of those glyphs that are asked for."""
    table, total = _find(data, number, b"GPOS"), {}
    if table is None:
        return total
    for lookup in _kern_lookups(table):
        for pair, value in _pairs_of(lookup, glyphs).items():
            total[pair] = total.get(pair, 0) + value
    return {pair: value for pair, value in total.items() if value}


def _kern_lookups(table: _Table) -> Iterator[_Table]:
    features, lookups, chosen = table.below(6), table.below(8), set()
    for k in range(min(features.u16(0), _MOST)):
        at = features.start + 2 + 6 * k
        if features.data[at : at + 4] == b"kern":
            feature = features.below(6 + 6 * k)
            chosen |= set(feature.array(4, min(feature.u16(2), _MOST))[:, 0].tolist())
    for k in sorted(chosen):
        if k < lookups.u16(0):
            yield lookups.below(2 + 2 * k)


def _pairs_of(lookup: _Table, glyphs: set[int]) -> dict[tuple[int, int], int]:
    """Of one lookup: the first subtable that knows a pair decides it."""
    found: dict[tuple[int, int], int] = {}
    closed: set[int] = set()  # left glyphs that a table of classes has decided for all others
    for k in range(min(lookup.u16(4), _MOST)):
        kind, subtable = lookup.u16(0), lookup.below(6 + 2 * k)
        if kind == _EXTENSION:
            kind, subtable = subtable.u16(2), _Table(lookup.data, subtable.start + subtable.u32(4))
        if kind != _PAIR or not subtable.u16(4) & _X_ADVANCE:
            continue
        wanted = glyphs - closed
        covered = {g: i for g, i in _coverage(subtable.below(2)) if g in wanted}
        if not covered:
            continue
        if subtable.u16(0) == 1:
            new = _listed(subtable, covered, glyphs)
        else:
            new = _by_class(subtable, covered, glyphs)
            closed |= set(covered)
        found = dict(new) | found
    return found


def _values(subtable: _Table) -> tuple[int, int]:
    """(numbers in a pair's two value records, place of the left one's advance among them)"""
    first, second = subtable.u16(4), subtable.u16(6)
    return first.bit_count() + second.bit_count(), (first & (_X_ADVANCE - 1)).bit_count()


def _listed(
    subtable: _Table, covered: dict[int, int], glyphs: set[int]
) -> Iterator[tuple[tuple[int, int], int]]:
    """PairPos format 1: a list of right glyphs for each left one."""
    size, place = _values(subtable)
    left_over = len(subtable.data) // 2  # no table holds more pairs; a damaged one may say so
    for left, i in covered.items():
        pairs = subtable.below(10 + 2 * i)
        left_over -= pairs.u16(0)
        if left_over < 0:
            return
        rows = pairs.array(2, pairs.u16(0), 1 + size, ">i2")
        for right, value in zip((rows[:, 0] & 0xFFFF).tolist(), rows[:, 1 + place].tolist()):
            if right in glyphs:
                yield (left, right), value


def _by_class(
    subtable: _Table, covered: dict[int, int], glyphs: set[int]
) -> Iterator[tuple[tuple[int, int], int]]:
    """PairPos format 2: a matrix of values by the classes of both glyphs; pairs that move."""
    size, place = _values(subtable)
    left_class, right_class = _classes(subtable.below(8)), _classes(subtable.below(10))
    rows, columns = subtable.u16(12), subtable.u16(14)
    values = subtable.array(16, rows * columns, size, ">i2")[:, place]
    if len(values) != rows * columns:
        return
    members: dict[int, list[int]] = {}
    for glyph in glyphs:
        members.setdefault(right_class.get(glyph, 0), []).append(glyph)
    for left in covered:
        row = left_class.get(left, 0)
        if row < rows:
            of_left = values[row * columns : (row + 1) * columns]
            for column in np.flatnonzero(of_left).tolist():
                for right in members.get(column, ()):
                    yield (left, right), int(of_left[column])


def _coverage(table: _Table) -> Iterator[tuple[int, int]]:
    """(glyph, its number in the table)"""
    if table.u16(0) == 1:
        yield from zip(table.array(4, table.u16(2))[:, 0].tolist(), range(65536))
        return
    for low, high, first in _ranges(table):
        yield from zip(range(low, high + 1), range(first, 65536 + first))


def _classes(table: _Table) -> dict[int, int]:
    """Glyph -> class; those that are not named have class 0."""
    if table.u16(0) == 1:
        return dict(enumerate(table.array(6, table.u16(4))[:, 0].tolist(), table.u16(2)))
    return {glyph: kind for low, high, kind in _ranges(table) for glyph in range(low, high + 1)}


def _ranges(table: _Table) -> Iterator[tuple[int, int, int]]:
    """(first glyph, last glyph, number), rising; what does not rise is damaged and ends them."""
    last = -1
    for low, high, number in table.array(4, table.u16(2), 3).tolist():
        if not last < low <= high:
            return
        yield low, high, number
        last = high
