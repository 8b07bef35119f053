"""Metrics -> one self-contained HTML page: curves, rendered pages, settings.

In: a run directory. Out: the text of report.html; it opens from disk, without a network.

The one idea: plain SVG and a few lines of CSS, no script and no library. A point tells its step and
value when the pointer rests on it (the SVG `title` element), and the colours follow the reader's
light or dark setting.
"""

import base64
import html
import json
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 56, 24  # px of a chart and of its axes

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #667085; --line: #d5dae3;
        --paper: #ffffff; --a: #2563c9; --b: #c2410c; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #343b4a; --paper: #14171f; --a: #6ea8ff;
          --b: #ff9a62; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1340px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 11px; }
.axis { stroke: var(--line); } .a { stroke: var(--a); } .b { stroke: var(--b); }
polyline { fill: none; stroke-width: 1.8; } circle { fill: var(--paper); stroke-width: 1.6; }
.pages { display: flex; flex-wrap: wrap; gap: 1rem; }
.pages img { max-width: 300px; border: 1px solid var(--line); }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .8rem; font-size: 12.5px; }
.key { color: var(--soft); } .key b { font-weight: 600; } .key .a { color: var(--a); }
.key .b { color: var(--b); }
"""


def metric_lines(run: Path) -> list[dict]:
    """The lines of metrics.jsonl; without the last one if a kill tore it apart."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def read_metrics(run: Path) -> dict[str, list[dict]]:
    """{"train": [...], "eval": [...]} of metrics.jsonl, in the order written."""
    lines: dict[str, list[dict]] = {"train": [], "eval": []}
    for values in metric_lines(run):
        lines.setdefault(values["kind"], []).append(values)
    return lines


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values between low and high."""
    span = max(high - low, 1e-12)
    size = 10.0 ** len(str(int(span)))
    while span / size < most - 1:
        size = next(size * f for f in (0.5, 0.2, 0.1) if span / (size * f) >= most - 1 or f == 0.1)
    first = int(low / size) * size
    return [v for i in range(50) if low <= (v := first + i * size) <= high + 1e-9][: most * 3]


def chart(title: str, series: list[tuple[str, str, list[tuple[float, float]]]]) -> str:
    """A line chart; series are (css class, name, [(step, value)])."""
    points = [point for _, _, line in series for point in line]
    if not points:
        return ""
    xs, ys = zip(*points)
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    x1, y1 = (x1 if x1 > x0 else x0 + 1), (y1 if y1 > y0 else y0 + (abs(y0) or 1) * 0.1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - 12)
        return across, 12 + (y1 - y) / (y1 - y0) * (HEIGHT - BOTTOM - 24)

    parts = []
    for value in _ticks(y0, y1):
        _, y = place(x0, value)
        parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in _ticks(x0, x1):
        x, _ = place(value, y0)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 4}" text-anchor="middle">{value:.6g}</text>')
    for css, name, line in series:
        corners = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        parts.append(f'<polyline class="{css}" points="{corners}"/>')
        for x, y in line:
            cx, cy = place(x, y)
            label = html.escape(f"{name}, step {x:g}: {y:.5g}")
            parts.append(f'<circle class="{css}" cx="{cx:.1f}" cy="{cy:.1f}" r="2.6">'
                         f"<title>{label}</title></circle>")  # fmt: skip
    key = " ".join(f'<b class="{css}">{html.escape(name)}</b>' for css, name, _ in series)
    return (f'<figure><h2>{html.escape(title)} <span class="key">{key}</span></h2>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
            f'{"".join(parts)}</svg></figure>')  # fmt: skip


def _column(lines: list[dict], key: str, scale: float = 1.0) -> list[tuple[float, float]]:
    return [(line["step"], line[key] * scale) for line in lines if key in line]


def page(run: Path) -> str:
    """The whole report of one run."""
    metrics = read_metrics(run)
    train, held_out = metrics["train"], metrics["eval"]
    charts = [
        chart("Loss, nats per scored token", [("a", "training", _column(train, "loss")),
                                              ("b", "held out", _column(held_out, "loss"))]),
        chart("Learning rate", [("a", "rate", _column(train, "lr"))]),
        chart("Gradient norm, before clipping", [("a", "norm", _column(train, "grad_norm"))]),
        chart("Samples per second", [("a", "samples/s", _column(train, "samples_per_s"))]),
        chart("Peak memory, MiB", [("a", "rank 0", _column(train, "peak_memory_bytes", 2**-20))]),
    ]  # fmt: skip
    images = "".join(
        f'<img alt="{html.escape(path.name)}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}">'
        for path in sorted((run / "pages").glob("*.png"))
    )
    config = run / "config.toml"
    settings = html.escape(config.read_text(encoding="utf-8")) if config.exists() else ""
    ends = ""
    if held_out:
        ends = (f"Held-out loss {held_out[0]['loss']:.4f} at step {held_out[0]['step']}, "
                f"{held_out[-1]['loss']:.4f} at step {held_out[-1]['step']}.")  # fmt: skip
    title = html.escape(run.name)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f'<h1>{title}</h1><p>{ends}</p><div class="charts">{"".join(charts)}</div>'
        f'<h2>Pages, as the model sees them</h2><div class="pages">{images}</div>'
        f"<h2>Settings</h2><pre>{settings}</pre></body></html>\n"
    )
