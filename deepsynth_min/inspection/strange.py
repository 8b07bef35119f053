"""The rows that a person should look at first, and why each is strange.

In: the figures of all training rows (statistics.py). Out: at most ten rows with their reasons.

The one idea: mistakes in data lie at the ends of distributions. Of each figure the most extreme row
is taken, then the second of each, and so on, until there are ten.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .statistics import Part, Statistics

MOST = 10


@dataclass
class Strange:
    """A row of one split, and why it is shown."""

    split: str
    row: int
    reasons: list[str]


# One row after another, the strangest first: (split, row, reason).
Ranking = Iterator[tuple[str, int, str]]


def strangest(statistics: Statistics, most: int = MOST) -> list[Strange]:
    """At most so many rows; one that leads in several ways comes once, with all its reasons."""
    found: dict[tuple[str, int], Strange] = {}
    rankings = [_too_long(statistics), _repeated(statistics), *_extremes(statistics.train)]
    for place in range(most):
        for ranking in rankings:
            split, row, reason = next(ranking, ("", 0, ""))
            if not reason:
                continue
            known = (split, row) in found
            if known and place == 0:
                found[split, row].reasons.append(reason)
            elif not known and len(found) < most:
                found[split, row] = Strange(split, row, [reason])
    return list(found.values())


def _too_long(statistics: Statistics) -> Ranking:
    for split in ("train", "held_out"):
        for bad in getattr(statistics, split).bad:
            if bad.too_long:
                yield split, bad.row, f"too long: {bad.fault.reason}"


def _repeated(statistics: Statistics) -> Ranking:
    """Training rows that are held out too, or nearly so."""
    held_out, (places, others) = statistics.held_out, statistics.same_page()
    first = {held_out.keys[i, 0]: held_out.numbers[i] for i in others[::-1]}
    for place in places:
        other = first[statistics.train.keys[place, 0]]
        where = statistics.data.held_out[int(other)].where
        yield "train", int(statistics.train.numbers[place]), f"its page is held out too: {where}"
    exact = set(statistics.train.numbers[places].tolist())
    for near in sorted(statistics.train.near, key=lambda near: -near.similarity):
        if near.row not in exact:
            where = statistics.data.held_out[near.held_out].where
            share = f"{100 * near.similarity:.0f} %"
            yield "train", near.row, f"nearly the same as the held-out {where}: {share} alike"


def _extremes(part: Part) -> list[Ranking]:
    visual, answer, text = (part.column(name) for name in ("visual", "answer", "characters"))
    has_text, has_page = text >= 0, visual > 0
    density = part.column("drawn") / np.maximum(visual, 1)
    beside = answer / np.maximum(visual, 1)
    measures = (
        ("the longest: {:,.0f} visual tokens", visual, np.max, has_page),
        ("the shortest text: {:,.0f} characters", text, np.min, has_text),
        ("the longest answer: {:,.0f} tokens", answer, np.max, answer > 0),
        ("the most characters not drawn: {:,.0f}", part.column("missing"), np.max, has_text),
        ("the fewest characters per visual token: {:.2f}", density, np.min, has_text & has_page),
        ("the most characters per visual token: {:.2f}", density, np.max, has_text & has_page),
        ("the shortest answer: {:,.0f} tokens", answer, np.min, answer > 0),
        ("the most to answer per visual token: {:.2f} tokens", beside, np.max, has_page),
    )
    return [_ranking(part, *measure) for measure in measures]


def _ranking(
    part: Part, reason: str, values: np.ndarray, end: Callable, usable: np.ndarray
) -> Ranking:
    """Rows from one end of a figure, down to where it is as usual."""
    if not usable.any():
        return
    median = float(np.median(values[usable]))
    usual = reason[reason.index("{") : reason.index("}") + 1].format(median)
    places = np.flatnonzero(usable)
    order = places[np.argsort(-values[places] if end is np.max else values[places], kind="stable")]
    for place, i in enumerate(order[:MOST]):
        if values[i] == median:
            return
        rank = "" if place == 0 else f", number {place + 1} in this"
        text = reason.format(values[i])
        yield "train", int(part.numbers[i]), f"{text} (median {usual}){rank}"
