"""Numbers -> SVG: line charts, bars, histograms and heat maps for the pages.

In: series of points, or values. Out: SVG text, coloured by CSS classes c0, c1, ... of the page.

The one idea: no script. A point tells its place and value when the pointer rests on it (the SVG
`title` element), on a disc larger than what is drawn.
"""

import html
import math
from collections import Counter
from collections.abc import Callable, Sequence

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 250, 58, 34, 10  # px of a chart and of its margins
MAX_POINTS = 400  # points of a series that are drawn; a longer one is thinned out
FEW = 12  # different values of a histogram that have a bar each, if they repeat
Point = tuple[float, float]
Bar = tuple[float, float, int, str]  # from and to on the x axis, how many values, which ones
Series = tuple[str, str, list[Point]]  # css classes, name, points (x, y)
Band = tuple[str, list[tuple[float, float, float]]]  # css classes, points (x, low, high)


def ticks(low: float, high: float, count: int = 6) -> list[float]:
    """At most `count` round values (1, 2 or 5 times a power of ten apart) from low to high."""
    span = high - low
    if span <= 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(span / count))
    size = next(size * f for f in (1, 2, 5, 10, 20) if span / (size * f) <= count - 1)
    first = math.ceil(low / size - 1e-9)
    return [n * size for n in range(first, math.floor(high / size + 1e-9) + 1)]


def _thinned(points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Finite points, at most MAX_POINTS of them, the last among them."""
    points = [p for p in points if all(map(math.isfinite, p))]
    step = math.ceil(len(points) / MAX_POINTS) or 1
    return points[::-1][::step][::-1]


def _corners(points: list[Point], to_pixels: Callable[[float, float], Point]) -> str:
    """The `points` of an SVG polyline or polygon."""
    return " ".join("{:.1f},{:.1f}".format(*to_pixels(*point)) for point in points)


def _range(values: list[float]) -> tuple[float, float]:
    """Least and greatest; with some space around if they are equal."""
    low, high = min(values), max(values)
    padding = 0.0 if high > low else (abs(low) or 1.0) * 0.05
    return low - padding, high + padding


def _axes(
    xs: tuple[float, float],
    ys: tuple[float, float],
    to_pixels: Callable[[float, float], Point],
    unit: str,
    marks: list[tuple[float, str]] | None = None,
) -> list[str]:
    """Grid lines, tick labels and the label of the x axis. marks: labels of that axis and where
    they stand; by default round values."""
    parts = []
    for value in ticks(*ys):
        _, y = to_pixels(xs[0], value)
        parts.append(
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
        )
    if marks is None:
        marks = [(value, f"{value:.8g}") for value in ticks(*xs)]
    for value, label in marks:
        x, _ = to_pixels(value, ys[0])
        anchor = "middle" if x < WIDTH - 30 else "end"  # stays inside
        at = f'x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}"'
        parts.append(f"<text {at}>{label}</text>")
    middle = (LEFT + WIDTH) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 3}" text-anchor="middle">{unit}</text>')
    return parts


def chart(title: str, series: list[Series], unit: str, bands: Sequence[Band] = ()) -> str:
    """A line chart with a legend; "" if there is nothing to draw. `unit`: what x counts. A series
    alone needs no name: it has that of the chart. bands: areas behind the lines."""
    series = [(css, name, _thinned(points)) for css, name, points in series]
    series = [(css, name, points) for css, name, points in series if points]
    if not series:
        return ""
    bands = [(css, _thinned(points)) for css, points in bands]
    areas = [[low, high] for _, points in bands for _, low, high in points]
    xs = _range([x for _, _, points in series for x, _ in points])
    ys = _range([y for _, _, points in series for _, y in points] + sum(areas, []))

    def to_pixels(x: float, y: float) -> Point:
        across = LEFT + 6 + (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - 14)
        return across, TOP + (ys[1] - y) / (ys[1] - ys[0]) * (HEIGHT - BOTTOM - TOP)

    parts = _axes(xs, ys, to_pixels, unit)
    for css, points in bands:
        around = [(x, low) for x, low, _ in points] + [(x, high) for x, _, high in points[::-1]]
        if len(points) > 1:
            parts.append(f'<polygon class="{css} band" points="{_corners(around, to_pixels)}"/>')
    for css, name, points in series:
        parts.append(f'<polyline class="{css}" points="{_corners(points, to_pixels)}"/>')
        for x, y in points:
            cx, cy = to_pixels(x, y)
            label = html.escape(f"{name or title}, {unit} {x:.6g}: {y:.5g}")
            parts.append(
                f'<g class="{css} point"><title>{label}</title>'
                f'<circle class="seen" cx="{cx:.1f}" cy="{cy:.1f}" r="2.4"/>'
                f'<circle class="hit" cx="{cx:.1f}" cy="{cy:.1f}" r="8"/></g>'
            )
    legend = "".join(f'<b class="{css}">{html.escape(name)}</b>' for css, name, _ in series if name)
    title = html.escape(title)
    return (
        f'<figure><h3>{title} <span class="key">{legend}</span></h3>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">'
        f"{''.join(parts)}</svg></figure>"
    )


def bars(groups: list[tuple[str, list[tuple[str, str, float]]]]) -> str:
    """Horizontal bars from 0, in groups (label, [(css class, name, value)])."""
    rows = [(label, *bar) for label, group in groups for bar in group if math.isfinite(bar[2])]
    if not rows:
        return ""
    low, high = min(0.0, *(row[3] for row in rows)), max(0.0, *(row[3] for row in rows))
    left, right, line = 190, WIDTH - 70, 24
    scale = (right - left) / ((high - low) or 1)
    zero, parts, before = left - low * scale, [], None
    for i, (label, css, name, value) in enumerate(rows):
        y, end = i * line + 4, zero + value * scale
        if label != before:
            parts.append(f'<text x="0" y="{y + 14}">{html.escape(label)}</text>')
        parts.append(
            f'<rect class="{css}" x="{min(zero, end):.1f}" y="{y}" height="16" '
            f'width="{max(abs(end - zero), 0.5):.1f}"><title>'
            f"{html.escape(f'{name}, {label}: {value:+.4f}')}</title></rect>"
            f'<text x="{max(zero, end) + 6:.1f}" y="{y + 13}">{value:+.4f}</text>'
        )
        before = label
    height = len(rows) * line + 6
    axis = f'<line class="axis" x1="{zero:.1f}" x2="{zero:.1f}" y1="0" y2="{height}"/>'
    drawn = axis + "".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" class="bars">{drawn}</svg>'


def _bars_of_values(values: list[float]) -> tuple[list[Bar], list[tuple[float, str]]]:
    """A bar for each different value, side by side, whatever lies between them."""
    heights = sorted(Counter(values).items())
    bars = [(i, i + 1, height, f"{value:.6g}") for i, (value, height) in enumerate(heights)]
    return bars, [(start + 0.5, name) for start, _, _, name in bars]


def _bars_of_ranges(values: list[float], bins: int) -> tuple[list[Bar], list[tuple[float, str]]]:
    """Bars of equal width, those of height 0 left out; the last one takes a long tail.

    Whole numbers that are multiples of a step apart have as many of its multiples in each bar.
    """
    low, high, nearly = values[0], values[-1], values[int(0.99 * (len(values) - 1))]
    has_tail = nearly > low and high - low > 2 * (nearly - low)
    span, step = (nearly if has_tail else high) - low, 0
    if all(value == int(value) for value in values):
        step = math.gcd(*(int(value - low) for value in values if value - low <= span)) or 1
        width = step * math.ceil((span // step + 1) / bins)
    else:
        width = span / bins or 1.0
    count = max(1, math.ceil((span + step) / width)) + has_tail
    heights = Counter(min(int((value - low) / width), count - 1) for value in values)
    bars = []
    for place, height in sorted(heights.items()):
        start, end = low + place * width, low + (place + 1) * width
        name = f"{start:.6g} to {end - step:.6g}"
        if has_tail and place == count - 1:
            name = f"{start:.6g} and more"
        elif width == step:
            name = f"{start:.6g}"
        bars.append((start - step / 2, end - step / 2, height, name))
    first, last = bars[0][0], low + count * width - step / 2
    return bars, [(value, f"{value:.8g}") for value in ticks(first, last) if value >= low]


def histogram(title: str, values: Sequence[float], unit: str, bins: int = 40) -> str:
    """How many values lie where; a few values that repeat have a bar each. "" without values."""
    values = sorted(filter(math.isfinite, values))
    if not values:
        return ""
    different = len(set(values))
    by_value = different <= FEW and 2 * different <= len(values)
    bars, marks = _bars_of_values(values) if by_value else _bars_of_ranges(values, bins)
    xs = bars[0][0], max(bars[-1][1], marks[-1][0] if marks else 0)
    ys = (0.0, float(max(height for _, _, height, _ in bars)))

    def to_pixels(x: float, y: float) -> Point:
        across = LEFT + 6 + (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - 14)
        return across, TOP + (ys[1] - y) / ys[1] * (HEIGHT - BOTTOM - TOP)

    parts = _axes(xs, ys, to_pixels, unit, marks)
    for start, end, height, name in bars:
        (x, y), (right, bottom) = to_pixels(start, height), to_pixels(end, 0)
        label = html.escape(f"{name} {unit}: {height:,}")
        parts.append(
            f'<rect class="c0" x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(right - x - 1, 0.5):.1f}" '
            f'height="{bottom - y:.1f}"><title>{label}</title></rect>'
        )
    note = " (the last bar: and more)" if bars[-1][3].endswith("and more") else ""
    title = html.escape(title + note)
    return (
        f'<figure><h3>{title}</h3><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{title}">{"".join(parts)}</svg></figure>'
    )


def heat_map(
    title: str,
    values: dict[tuple[float, float], float],
    rows: tuple[str, Callable[[float], str]],
    columns: tuple[str, Callable[[float], str]],
) -> str:
    """Shares from 0 to 1 by (row, column), each with its number in its cell, the deeper in colour
    the higher; "" without any. rows, columns: what they are, and how one is written."""
    if not values:
        return ""
    downs, acrosses = (sorted(set(places)) for places in zip(*values))
    left, top, high = 92, 22, 34
    wide, bottom = (WIDTH - left) / len(acrosses), top + high * len(downs)
    parts = [f'<text x="0" y="{top - 8}">{html.escape(rows[0])}</text>']
    for i, down in enumerate(downs):
        y, name = top + i * high, html.escape(rows[1](down))
        parts.append(f'<text x="{left - 8}" y="{y + 22}" text-anchor="end">{name}</text>')
        for j, across in enumerate(acrosses):
            if (share := values.get((down, across))) is None:
                continue
            x, middle = left + j * wide, left + (j + 0.5) * wide
            label = f"{rows[0]} {rows[1](down)}, {columns[0]} {columns[1](across)}: {share:.1%}"
            parts.append(
                f'<g><title>{html.escape(label)}</title><rect class="c0" x="{x + 1:.1f}" '
                f'y="{y + 1}" width="{wide - 2:.1f}" height="{high - 2}" '
                f'style="fill-opacity: {0.06 + 0.5 * share:.3f}"/><text class="value" '
                f'x="{middle:.1f}" y="{y + 22}" text-anchor="middle">{share:.0%}</text></g>'
            )
    for j, across in enumerate(acrosses):
        at = f'x="{left + (j + 0.5) * wide:.1f}" y="{bottom + 16}" text-anchor="middle"'
        parts.append(f"<text {at}>{html.escape(columns[1](across))}</text>")
    at = f'x="{(left + WIDTH) / 2:.0f}" y="{bottom + 34}" text-anchor="middle"'
    parts.append(f"<text {at}>{html.escape(columns[0])}</text>")
    title = html.escape(title)
    return (
        f'<figure><h3>{title}</h3><svg viewBox="0 0 {WIDTH} {bottom + 40}" role="img" '
        f'aria-label="{title}">{"".join(parts)}</svg></figure>'
    )
