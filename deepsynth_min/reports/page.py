"""Metrics -> one self-contained HTML page: curves, page ablations, answers beside pages, settings.

In: run directories. Out: the text of report.html; it opens from disk, without a network.
`python -m deepsynth_min.report` writes it, and so does a training run after each evaluation.

The one idea: plain SVG and CSS, no script and no library. Two radio buttons choose between steps
and time, both of which are in the page; the colours follow the reader's light or dark setting.
Several runs are drawn into the same charts, and the settings in which they differ are set side by
side.
"""

import base64
import html
import json
import tomllib
from pathlib import Path

from ..config_file import to_show
from ..evaluation import ablations
from .charts import bars, chart

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5d6878; --line: #d5dae3; --paper: #fff;
  --c0: #2563c9; --c1: #c2410c; --c2: #15803d; --c3: #9333ea; --c4: #b45309; --c5: #0e7490; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #343b4a; --paper: #14171f;
    --c0: #6ea8ff; --c1: #ff9a62; --c2: #5fd38d; --c3: #c792ff; --c4: #f2b84b; --c5: #4fd0e0; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1340px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: .4rem 0; } figure { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 1.2rem; }
svg { width: 100%; height: auto; } svg.bars { max-width: 760px; display: block; }
svg text { fill: var(--soft); font-size: 12px; } .axis { stroke: var(--line); }
polyline { fill: none; stroke-width: 1.8; } .dashed { stroke-dasharray: 5 4; }
.hit { fill: transparent; stroke: none; } .seen { fill: var(--paper); stroke-width: 1.4; }
.point:hover .seen { r: 5; } .note { border-left: 4px solid var(--c1); padding: .2rem .8rem; }
table { border-collapse: collapse; } td, th { border: 1px solid var(--line); padding: .3rem .6rem;
  text-align: left; vertical-align: top; } td.number { text-align: right; }
.answers img { width: 260px; image-rendering: auto; border: 1px solid var(--line); }
.answers td { max-width: 34rem; overflow-wrap: anywhere; } .scroll { overflow-x: auto; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .8rem; font-size: 12.5px; }
.key b { font-weight: 600; margin-left: .7rem; font-size: .85rem; }
#by-step:checked ~ .time, #by-time:checked ~ .step { display: none; }
""" + "".join(
    f".c{i} {{ stroke: var(--c{i}); }} b.c{i} {{ color: var(--c{i}); }} "
    f"rect.c{i} {{ fill: var(--c{i}); stroke: none; }}\n"
    for i in range(6)
)

ABLATION_NAMES = {
    "blank": "an empty page",
    "shuffled": "another page",
    "without": "no page",
    "text": "as much text",
}


def metric_lines(run: Path) -> list[dict]:
    """The lines of metrics.jsonl; one cut short by a kill, or that is not ours, is left out."""
    path = run / "metrics.jsonl"
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(values, dict)
            and isinstance(values.get("kind"), str)
            and (isinstance(values.get("step"), int))
        ):
            lines.append(values)
    return lines


def read_metrics(run: Path) -> dict[str, list[dict]]:
    """{"train": [...], "eval": [...], "answers": [...]} of metrics.jsonl, in the order written.

    Each line gets `minutes`, of training alone: evaluating and saving are left out.
    """
    lines: dict[str, list[dict]] = {"train": [], "eval": [], "answers": []}
    minutes, samples = 0.0, 0
    for values in metric_lines(run):
        if values["kind"] == "train":
            rate = values["samples_per_s"]
            minutes += (values["samples"] - samples) / rate / 60 if rate else 0.0
            samples = values["samples"]
        lines.setdefault(values["kind"], []).append({**values, "minutes": minutes})
    return lines


class Run:
    """What the report shows of one run directory; `css` is its colour among several."""

    def __init__(self, path: Path, number: int):
        self.path, self.name, self.css = path, path.resolve().name, f"c{number % 6}"
        self.lines = read_metrics(path)
        config = path / "config.toml"
        self.config = to_show(config.read_text(encoding="utf-8")) if config.exists() else ""

    @property
    def last(self) -> dict:
        """The figures of the last evaluation, empty if there was none."""
        return (self.lines["eval"] or [{}])[-1]

    def column(self, kind: str, key: str, x: str, scale: float = 1.0) -> list[tuple[float, float]]:
        """Points (x, scaled value) of a figure in the lines of one kind."""
        return [(line[x], line[key] * scale) for line in self.lines[kind] if key in line]


def curves(runs: list[Run], x: str) -> str:
    """All charts over "step" or "minutes"."""
    single = len(runs) == 1

    def lines(title: str, *columns: tuple[str, str, str, float]) -> str:
        """A column is (kind, key, name, scale); the second of a run is dashed, or coloured."""
        series = [
            (
                f"c{i}" if single else f"{run.css}{' dashed' * (i > 0)}",
                name if single else f"{run.name}{', ' * bool(name)}{name}",
                run.column(kind, key, x, scale),
            )
            for run in runs
            for i, (kind, key, name, scale) in enumerate(columns)
        ]
        return chart(title, series, x)

    return "".join(
        (
            lines(
                "Loss, nats per scored token",
                ("train", "loss", "training" if single else "", 1.0),
                ("eval", "loss", "held out", 1.0),
            ),
            lines(
                "Does it read: rise of the loss without the right page",
                ("eval", "reads/shuffled", "another page", 1.0),
                ("eval", "reads/blank", "an empty page", 1.0),
            ),
            lines(
                "Character error rate of answers",
                ("eval", "cer", "mean" if single else "", 1.0),
                ("eval", "cer_median", "median", 1.0),
            ),
            lines("ROUGE-L of answers", ("eval", "rougeL", "", 1.0)),
            lines("Learning rate", ("train", "lr", "", 1.0)),
            lines("Gradient norm, before clipping", ("train", "grad_norm", "", 1.0)),
            lines("Samples per second", ("train", "samples_per_s", "", 1.0)),
            lines("Peak memory of rank 0, MiB", ("train", "peak_memory_bytes", "", 2.0**-20)),
        )
    )


def reading(runs: list[Run]) -> str:
    """Ablation bars of each run's last evaluation, and a note where the model does not read."""
    groups = [
        (
            what,
            [
                (run.css, run.name, run.last[f"reads/{kind}"])
                for run in runs
                if f"reads/{kind}" in run.last
            ],
        )
        for kind, what in ABLATION_NAMES.items()
    ]
    drawn = bars(groups)
    if not drawn:
        return ""
    notes = "".join(
        f'<p class="note">{html.escape(run.name)}: {html.escape(found)}.</p>'
        for run in runs
        if (found := ablations.warning(run.last))
    )
    return (
        "<h2>Does it read?</h2><p>Rise of the held-out loss, in nats per scored token, with "
        f"something else in the page's place, at the last evaluation.</p>{notes}{drawn}"
    )


def table(head: list[str], rows: list[list[str]], number: bool = False) -> str:
    """Cells are HTML already."""
    css = ' class="number"' if number else ""
    body = "".join(
        f"<tr><th>{row[0]}</th>{''.join(f'<td{css}>{cell}</td>' for cell in row[1:])}</tr>"
        for row in rows
    )
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f'<div class="scroll"><table><tr>{top}</tr>{body}</table></div>'


def figures(runs: list[Run]) -> str:
    """Every figure of the last evaluations, a column for each run."""
    names = list(dict.fromkeys(n for run in runs for n in run.last if n not in ("kind", "minutes")))
    if not names:
        return ""
    rows = [
        [name, *(f"{run.last[name]:.6g}" if name in run.last else "" for run in runs)]
        for name in names
    ]
    head = ["last evaluation", *(html.escape(run.name) for run in runs)]
    return "<h2>Figures</h2>" + table(head, rows, number=True)


def _image(path: Path) -> str:
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.name)}" src="data:image/png;base64,{data}">'


def answers(run: Run) -> str:
    """Pages beside the reference and what the model wrote at the last evaluation."""
    shown = (run.lines["answers"] or [{"shown": []}])[-1]
    rows = [
        [
            _image(run.path / "pages" / f"held-out-{i}.png"),
            html.escape(found["reference"]),
            html.escape(found["answer"]),
        ]
        for i, found in enumerate(shown["shown"])
    ]
    if not rows:
        pages = sorted((run.path / "pages").glob("*.png"))
        return f'<div class="answers">{"".join(map(_image, pages))}</div>' if pages else ""
    head = ["first page, as the model sees it", "reference", f"answer at step {shown['step']}"]
    return f'<div class="answers">{table(head, rows)}</div>'


def differences(runs: list[Run]) -> str:
    """The settings in which the runs differ, as what they became."""
    tables = []
    for run in runs:
        concerns = tomllib.loads(run.config)
        became = concerns.pop("resolved", {})
        tables.append(
            {
                f"{title}.{name}": became.get(name, value)
                for title, concern in concerns.items()
                for name, value in concern.items()
            }
        )
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [
        [name, *(html.escape(str(table.get(name, ""))) for table in tables)]
        for name in names
        if len({str(table.get(name)) for table in tables}) > 1
    ]
    return "<h2>What differs</h2>" + table(["setting", *(html.escape(r.name) for r in runs)], rows)


def page(*paths: Path) -> str:
    """The whole report of one run, or of several side by side."""
    runs = [Run(Path(path), number) for number, path in enumerate(paths)]
    title = html.escape(" · ".join(run.name for run in runs))
    ends = [
        f"{html.escape(run.name)}: held-out loss {run.lines['eval'][0]['loss']:.4f} at step "
        f"{run.lines['eval'][0]['step']}, {run.last['loss']:.4f} at step {run.last['step']}."
        for run in runs
        if run.lines["eval"]
    ]
    parts = [
        f"<h1>{title}</h1><p>{'<br>'.join(ends)}</p><h2>Curves</h2>",
        '<input type="radio" name="over" id="by-step" checked><label for="by-step">over steps'
        '</label> <input type="radio" name="over" id="by-time"><label for="by-time">over '
        "minutes of training</label>",
        f'<div class="charts step">{curves(runs, "step")}</div>',
        f'<div class="charts time">{curves(runs, "minutes")}</div>',
        reading(runs),
        figures(runs),
        differences(runs) if len(runs) > 1 else "",
    ]
    for run in runs:
        parts.append(f"<h2>Pages and answers: {html.escape(run.name)}</h2>{answers(run)}")
        parts.append(
            f"<details><summary>Settings: {html.escape(run.name)}</summary>"
            f"<pre>{html.escape(run.config)}</pre></details>"
        )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"{''.join(parts)}</body></html>\n"
    )
