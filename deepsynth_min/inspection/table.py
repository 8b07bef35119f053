"""Statistics of data -> tables: what check.py prints and page.py shows.

In: `Statistics` (inspection/statistics.py) and settings. Out: `Section`s of text, and their lines.

The one idea: what is wrong is said with what mends it; for characters, pages/scripts.py says it.
"""

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from ..data.order import rows_per_epoch
from ..data.rows import LISTED
from ..errors import number_of
from ..model.shape.presets import PRESETS
from ..pages.scripts import mends_missing, mends_unshaped, script_of, shown_character
from ..settings import Settings
from .duplicates import NEAR
from .statistics import SKETCHED, Part, Statistics

COLUMNS = ("", "min", "median", "mean", "95 %", "max")
EXAMPLES, SCRIPTS = 8, 15  # characters of a script that are shown; scripts


@dataclass
class Section:
    """A heading, lines, and a table whose first row names its columns."""

    title: str
    lines: list[str] = field(default_factory=list)
    table: list[tuple[str, ...]] = field(default_factory=list)
    numbers: bool = True  # whether the cells beyond the first are numbers


def sections(statistics: Statistics, settings: Settings, processes: int) -> list[Section]:
    """Everything there is to say, in the order in which it is read; sections may be empty."""
    found = [
        _setting(statistics, settings),
        _rows(statistics),
        _bad_rows(statistics),
        _sizes(statistics),
        _characters(statistics),
        _said_twice(statistics),
        _epoch(statistics, settings, processes),
    ]
    return [section for section in found if section.lines or section.table]


def _setting(statistics: Statistics, settings: Settings) -> Section:
    builder, model = statistics.builder, settings.model
    line = (
        f"{model.model}, --mode {model.mode}: pages of {builder.side} px, "
        f"{builder.visual_tokens()} visual tokens each; a context of {builder.context:,} tokens"
    )
    if model.model in PRESETS:
        line += "; tokens are those of the embedded tokenizer"
    return Section("Data", [line, *statistics.data.notes])


def _rows(statistics: Statistics) -> Section:
    train, held_out = statistics.train, statistics.held_out
    bad = Counter(fault.kind for fault in statistics.bad)
    cut = int(train.column("cut").sum() + held_out.column("cut").sum())
    table = [
        ("", "rows"),
        ("train", f"{len(train.numbers):,}"),
        ("are held out and scored", f"{len(held_out.numbers):,}"),
        ("cannot be used", f"{bad.total():,}"),
        *((f"  {kind}", f"{count:,}") for kind, count in bad.most_common()),
    ]
    if cut:
        table.append(("cut to fit into the context", f"{cut:,}"))
    lost = train.column("characters") - train.column("drawn")
    if lost.any():
        share = 100 * lost.sum() / train.column("characters").clip(0).sum()
        table.append(
            (f"whose text is cut ({share:.1f} % of all characters)", f"{(lost > 0).sum():,}")
        )
    return Section("Rows", table=table)


def _bad_rows(statistics: Statistics) -> Section:
    bad = statistics.bad
    lines = [f"{fault.where}: {fault.reason}" for fault in bad[:LISTED]]
    more = [f"... and {len(bad) - LISTED:,} more"] if len(bad) > LISTED else []
    return Section("Rows that cannot be used", lines + more)


def distributions(part: Part) -> list[tuple[str, str, np.ndarray]]:
    """(title, unit, values) of what varies from row to row; no values where there is no such."""
    visual, drawn = part.column("visual"), part.column("drawn")
    pages, text = part.column("pages"), drawn >= 0
    density = drawn[text & (visual > 0)] / visual[text & (visual > 0)]
    return [
        ("Pages", "pages", pages),
        ("Visual tokens", "visual tokens", visual),
        ("Characters of the text", "characters", part.column("characters")[text]),
        ("Characters per visual token", "characters per visual token", density),
        ("Answer", "tokens", part.column("answer")),
        ("Whole sequence", "tokens", part.column("length")),
    ]


def _sizes(statistics: Statistics) -> Section:
    rows = []
    for title, unit, values in distributions(statistics.train):
        if len(values):
            figures = (
                values.min(),
                np.median(values),
                values.mean(),
                np.percentile(values, 95),
                values.max(),
            )
            name = title if unit in title.lower() else f"{title}, {unit}"
            rows.append((name, *(number(float(value)) for value in figures)))
    return Section("Sizes of the rows that train", table=[COLUMNS, *rows] if rows else [])


def number(value: float) -> str:
    """At most two decimals, none in large or whole numbers."""
    whole = value == int(value) or abs(value) >= 100
    return f"{value:,.0f}" if whole else f"{value:,.2f}"


def _characters(statistics: Statistics) -> Section:
    """Of both splits, a line for each script that is not drawn as it should."""
    parts, style = (statistics.train, statistics.held_out), statistics.builder.style
    missing = sum((part.missing for part in parts), Counter())
    unshaped = sum((part.unshaped for part in parts), Counter())
    if not missing and not unshaped:
        return Section("Characters", ["every character is drawn as it should"])
    rows = [("script", "times", "what", "what mends it", "characters")]  # last: of any width
    for what, found in (("no font has them", missing), ("drawn without shaping", unshaped)):
        scripts: dict[str, Counter[str]] = {}
        for char, times in found.items():
            scripts.setdefault(script_of(char), Counter())[char] = times
        for script in sorted(scripts, key=lambda script: -scripts[script].total())[:SCRIPTS]:
            chars, lacking = scripts[script], found is missing
            mend = mends_missing(script, style) if lacking else mends_unshaped(style)
            shown = " ".join(shown_character(c) for c, _ in chars.most_common(EXAMPLES))
            shown += f" ({len(chars):,} different)" if len(chars) > EXAMPLES else ""
            rows.append((script, f"{chars.total():,}", what, mend, shown))
    affected = sum(int((part.column("missing") > 0).sum()) for part in parts)
    line = f"usable rows with characters that are not drawn as they should: {affected:,}"
    return Section("Characters", [line], rows, numbers=False)


def _said_twice(statistics: Statistics) -> Section:
    train, held_out = statistics.train, statistics.held_out
    ours, theirs = statistics.same_page()
    exact = set(held_out.numbers[theirs].tolist())
    near_rows = {near.row for near in train.near} - set(train.numbers[ours].tolist())
    touched = held_out_near(statistics) - exact
    limit = f", of the first {SKETCHED:,} held-out rows" if len(held_out.numbers) > SKETCHED else ""
    table = [
        ("", "training rows", "held-out rows"),
        ("the same page trains and is held out", f"{len(ours):,}", f"{len(theirs):,}"),
        (
            f"nearly the same text ({100 * NEAR:.0f} % alike or more{limit})",
            f"{len(near_rows):,}",
            f"{len(touched):,}",
        ),
        ("repeat a training row before them", f"{statistics.repeats():,}", ""),
    ]
    lines = []
    if len(theirs) or touched:
        lines.append("the held-out loss is too good by what the model has seen in training")
    return Section("Rows that say the same", lines, table)


def held_out_near(statistics: Statistics) -> set[int]:
    """Held-out rows, of those that can be used, that a training row is near to."""
    return statistics.train.touched & set(statistics.held_out.numbers.tolist())


def _epoch(statistics: Statistics, settings: Settings, processes: int) -> Section:
    optim, rows = settings.optim, rows_per_epoch(statistics.data.train)
    batch = optim.batch_size * optim.accumulate * processes
    steps = math.ceil(rows / batch)
    table = [
        ("", "in an epoch", "in a step"),
        ("steps", f"{steps:,}", ""),
        ("rows", f"{rows:,}", f"{batch:,}"),
    ]
    names = {"length": "tokens", "visual": "visual tokens", "answer": "tokens scored"}
    for name, title in (names | {"pages": "pages"}).items():
        total = statistics.per_epoch(name)
        table.append((title, f"{total:,.0f}", f"{total / steps:,.0f}"))
    line = (
        f"a step has {number_of(optim.batch_size, 'sample')} x "
        f"{number_of(optim.accumulate, 'micro-step')} x {number_of(processes, 'process')} = "
        f"{batch:,}"
    )
    return Section("An epoch", [line], table)


# -- as text --------------------------------------------------------------------------------------


def as_text(section: Section) -> str:
    """Heading, lines and aligned columns."""
    lines = [section.title, *(f"  {line}" for line in section.lines)]
    if section.table:
        widths = [max(map(len, column)) for column in zip(*section.table)]
        for row in section.table:
            cells = [
                cell.rjust(width) if i and section.numbers else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths))
            ]
            lines.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join(lines)
