"""Statistics of data -> one self-contained HTML page: histograms, tables, the strangest rows.

In: `Statistics` and the sections of table.py. Out: the text of the page, in the style of the
report about runs (page.py): no script, light and dark. `python -m deepsynth_min.check` writes it.

The one idea: the strangest rows are shown as the model will see them, each with why it was picked.
"""

import html

from ..data.row import Row, RowError
from ..data.samples import SampleBuilder
from ..files.disk import PAGE_HEAD
from ..pages.png import in_html, png
from ..reports.answers import visible
from ..reports.charts import histogram
from ..reports.page import STYLE
from ..reports.tables import table
from .statistics import Statistics
from .strange import Strange, strangest
from .table import Section, distributions

EXCERPT = 700  # characters of a text or an answer
MORE_STYLE = """
.good { border-left: 4px solid var(--c2); padding: .2rem .8rem; }
.answers th { min-width: 12rem; max-width: 20rem; font-weight: 400; } .answers img { width: 320px; }
.excerpt { white-space: pre-wrap; } .where { color: var(--soft); font-size: .85rem; }
th:first-child { white-space: pre-wrap; } th { font-weight: 500; }
"""


def data_page(statistics: Statistics, found: list[Section], obstacle: str) -> str:
    """obstacle: what would stop a training, "" if nothing would."""
    title = "Data check: " + ", ".join(statistics.builder.settings.data.data)
    verdict = f"Training would stop: {obstacle}" if obstacle else "Training would start."
    charts = "".join(
        histogram(name, values.tolist(), unit)
        for name, unit, values in distributions(statistics.train)
        if len(values) and values.min() < values.max()
    )
    css = "note" if obstacle else "good"
    parts = [
        f'<h1>{html.escape(title)}</h1><p class="{css}">{html.escape(verdict)}</p>',
        *(_section(section) for section in found),
        f'<h2>Histograms of the rows that train</h2><div class="charts">{charts}</div>',
        "<h2>The strangest rows</h2>",
        '<div class="answers">' + _strange_rows(statistics) + "</div>",
    ]
    return (
        f'{PAGE_HEAD}<head><meta charset="utf-8"><title>{html.escape(title)}'
        '</title><meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}{MORE_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _section(section: Section) -> str:
    lines = "<br>".join(map(html.escape, section.lines))
    cells = [[html.escape(cell) for cell in row] for row in section.table]
    drawn = table(cells[0], cells[1:], section.numbers) if cells else ""
    return f"<h2>{html.escape(section.title)}</h2><p>{lines}</p>{drawn}"


def _strange_rows(statistics: Statistics) -> str:
    rows = [_strange_row(statistics, strange) for strange in strangest(statistics)]
    return table(["why", "first page, as the model sees it", "text", "answer"], rows)


def _strange_row(statistics: Statistics, strange: Strange) -> list[str]:
    reasons = "<br>".join(map(html.escape, strange.reasons))
    try:
        row = getattr(statistics.data, strange.split)[strange.row]
    except RowError as error:  # its image has gone meanwhile
        return [reasons, html.escape(str(error)), "", ""]
    split = "held out" if strange.split == "held_out" else "trains"
    why = f'{reasons}<br><span class="where">{html.escape(row.where)}, {split}</span>'
    text = row.text if row.text is not None else row.instruction or ""
    return [why, _picture(row, statistics.builder), _excerpt(text), _excerpt(row.summary)]


def _picture(row: Row, builder: SampleBuilder) -> str:
    """The first page; of a colour image in grey."""
    try:
        pages = builder.prompt(row, 1).pages  # [n, C, h, w]
    except RowError as error:
        return html.escape(error.reason)
    if not len(pages):
        return "no page"
    return in_html(png(pages[0].mean(0).round().astype("uint8")), f"page of {row.where}")


def _excerpt(text: str) -> str:
    """Begin and end of a text; what an HTML page cannot hold is shown as U+FFFD."""
    if len(text) > EXCERPT:
        text = f"{text[: EXCERPT // 2]} [... {len(text):,} characters ...] {text[-EXCERPT // 2 :]}"
    return f'<div class="excerpt" dir="auto">{html.escape(visible(text))}</div>'
