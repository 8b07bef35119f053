"""Facts in long documents: how often they are found, by where they stand and how long it is.

In: of each answer the depth of its fact, the length of its document, and whether it is right. Out:
a figure `needle/DEPTH/LENGTH` for each such place, the share of exact answers; of such figures a
table for people.

The one idea: the figures are flat and carry their place in their names, so that they travel like
all others, through processes, files and sinks, and every reader of them finds the places again.

After the needle in a haystack of G. Kamradt (2023), with a question of its own for each document.
"""

import re
from collections.abc import Sequence
from statistics import mean

PLACE = ("depth", "length")  # of an answer; a length of 0: no needle
PREFIX = "needle/"


def accuracy(places: Sequence[tuple[float, float]], exact: Sequence[float]) -> dict[str, float]:
    """The figures; {} where no row has a needle."""
    found: dict[tuple[float, float], list[float]] = {}
    for place, right in zip(places, exact):
        if place[1]:
            found.setdefault(place, []).append(right)
    return {f"{PREFIX}{d:g}/{n:.0f}": mean(values) for (d, n), values in sorted(found.items())}


def by_place(figures: dict[str, float]) -> dict[tuple[float, int], float]:
    """{(depth, length): accuracy} of an evaluation's figures."""
    found = {}
    for name, value in figures.items():
        if place := re.fullmatch(rf"{PREFIX}([\d.]+)/(\d+)", name):
            found[float(place[1]), int(place[2])] = value
    return found


def table(figures: dict[str, float]) -> str:
    """For people: a line for each depth, a column for each length; "" without needles."""
    cells = by_place(figures)
    if not cells:
        return ""
    depths, lengths = (sorted(set(values)) for values in zip(*cells))
    lines = ["right answers by length of the document, characters"]
    lines.append(f"{'depth of the fact':<18}" + "".join(f"{length:>10,}" for length in lengths))
    for depth in depths:
        found = [cells.get((depth, length)) for length in lengths]
        shown = (f"{'' if share is None else f'{share:.0%}':>10}" for share in found)
        lines.append(f"{f'{depth:.0%}':<18}" + "".join(shown))
    return "\n".join(lines)
