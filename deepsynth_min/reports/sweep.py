"""Cells of a sweep -> a table for people, and a page with precision over compression.

In: cells (sweep.py): where each stands and its figures, or an error. Out: text; HTML.

The one idea: two points are drawn in to compare with: DeepSeek-OCR's paper reads with a precision
of 97 % below 10 text tokens per visual token, and of about 60 % at 20 (arXiv 2510.18234). It counts
visual tokens without row ends and separator, and texts in its own tokens; the figures here count
what stands in the sequence, and the model's own tokens.
"""

import html
from collections.abc import Sequence

from ..evaluation.figures import DEFINITIONS
from ..files.disk import PAGE_HEAD
from .charts import Series, chart
from .page import STYLE
from .tables import table as html_table

PAPER = [(10.0, 0.97), (20.0, 0.60)]
AXES = ("data", "mode", "font_size", "style")
FIGURES = (  # figure, its head, digits
    ("samples", "rows", 0),
    ("characters_per_token", "characters per visual token", 2),
    ("compression", "text tokens per visual token", 2),
    ("loss", "loss", 3),
    ("cer", "CER", 3),
    ("precision", "precision", 3),
    ("seconds_per_page", "s per page", 2),
)


def _row(cell: dict, axes: Sequence[str]) -> list[str]:
    where = [str(cell[name] or "auto") if name == "font_size" else cell[name] for name in axes]
    if "error" in cell:
        return [*where, *[""] * (len(FIGURES) - 1), cell["error"]]
    return [*where, *(f"{cell.get(name, float('nan')):.{n}f}" for name, _, n in FIGURES)]


def _axes(cells: list[dict]) -> list[str]:
    """Those along which cells differ; the mode always."""
    return [name for name in AXES if name == "mode" or len({cell[name] for cell in cells}) > 1]


def table(cells: list[dict]) -> str:
    axes = _axes(cells)
    rows = [_row(cell, axes) for cell in cells]
    heads = [*(name.replace("_", " ") for name in axes), *(head for _, head, _ in FIGURES)]
    widths = [max(map(len, column)) for column in zip(heads, *rows)]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in [heads, *rows])


def _lines(cells: list[dict]) -> list[Series]:
    """A line through the cells that differ in font size alone."""
    groups: dict[str, list[tuple[float, float]]] = {}
    others = [name for name in _axes(cells) if name != "font_size"]
    for cell in cells:
        if "precision" in cell and "compression" in cell:
            name = " ".join(str(cell[axis]) for axis in others if cell[axis])
            groups.setdefault(name, []).append((cell["compression"], cell["precision"]))
    return [(f"c{i % 5}", name, sorted(found)) for i, (name, found) in enumerate(groups.items())]


def page(cells: list[dict], model: str) -> str:
    """The whole page; it opens from disk, without a network."""
    axes, paper = _axes(cells), ("c5 dashed", "DeepSeek-OCR, as published", PAPER)
    lines = _lines(cells)
    drawn = chart("Precision over compression", [*lines, paper], "text tokens per visual token")
    heads = [*(name.replace("_", " ") for name in axes), *(head for _, head, _ in FIGURES)]
    rows = [[html.escape(value) for value in _row(cell, axes)] for cell in cells]
    what = "".join(
        f"<li>{html.escape(head)}: {html.escape(DEFINITIONS[name])}</li>"
        for name, head, _ in FIGURES
        if name in DEFINITIONS
    )
    title = html.escape(f"How well {model} reads")
    return (
        f'{PAGE_HEAD}<head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"<h1>{title}</h1>{drawn if lines else ''}"
        "<p>Dashed: 97 % below 10 text tokens per visual token, about 60 % at 20, as the paper has "
        "it (arXiv 2510.18234) for pages of the Fox benchmark, in its own tokens and without row "
        "ends and separators; a line here counts all that stands in the sequence.</p>"
        f'{html_table(heads, rows, number=True)}<ul class="what">{what}'
        "<li>s per page: seconds on all processes together to draw, encode and answer</li></ul>"
        "</body></html>\n"
    )
