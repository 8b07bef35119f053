"""Metrics -> one self-contained HTML page: curves, page ablations, answers beside pages, settings.

In: run directories. Out: the text of report.html; it opens from disk, without a network.
`python -m deepsynth_min.report` writes it, and so does a training run after each evaluation.

The one idea: plain SVG and CSS, no script and no library. Two radio buttons choose between steps
and time, both of which are in the page; the colours follow the reader's light or dark setting.
Several runs are drawn into the same charts, and the settings in which they differ are set side by
side.
"""

import html
import os
from pathlib import Path

from ..errors import UserError
from ..evaluation import ablations
from ..evaluation.figures import DEFINITIONS, WITH_INTERVAL, best_beside_last
from ..evaluation.needles import PREFIX
from ..files.disk import PAGE_HEAD
from .answers import ANSWER_STYLE, HOW_TO_READ, answers, before_and_after, image
from .arms import arms
from .charts import bars, chart
from .needles import needles
from .runs import Run
from .tables import table

# What files that are whole, but not as a run writes them, may lead to.
DAMAGED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
# These two other pages have too.
COLOURS = """
:root { color-scheme: light dark; --ink: #1d2330; --soft: #5d6878; --line: #d5dae3; --paper: #fff;
  --more: #bbf7d0; --less: #fecaca;
  --c0: #2563c9; --c1: #c2410c; --c2: #15803d; --c3: #9333ea; --c4: #b45309; --c5: #0e7490; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9f0; --soft: #98a2b3; --line: #343b4a; --paper: #14171f;
    --more: #14532d; --less: #7f1d1d;
    --c0: #6ea8ff; --c1: #ff9a62; --c2: #5fd38d; --c3: #c792ff; --c4: #f2b84b; --c5: #4fd0e0; } }
"""
SHARED = """
.note { border-left: 4px solid var(--c1); padding: .2rem .8rem; }
table { border-collapse: collapse; } td, th { border: 1px solid var(--line); padding: .3rem .6rem;
  text-align: left; vertical-align: top; } td.number { text-align: right; }
.what { color: var(--soft); font-size: .85rem; font-weight: 400; max-width: 34rem; }
"""
STYLE = (
    COLOURS
    + SHARED
    + """body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1340px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: .4rem 0; } figure { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 1.2rem; }
svg { width: 100%; height: auto; } svg.bars { max-width: 760px; display: block; }
svg text { fill: var(--soft); font-size: 15px; } svg.bars text { font-size: 12px; }
.axis { stroke: var(--line); }
svg text.value { fill: var(--ink); }
polyline { fill: none; stroke-width: 1.8; } .dashed { stroke-dasharray: 5 4; }
.band { fill-opacity: .13; }
.hit { fill: transparent; stroke: none; } .seen { fill: var(--paper); stroke-width: 1.4; }
.point:hover .seen { r: 5; }
.answers img { width: 260px; image-rendering: auto; border: 1px solid var(--line); }
.answers td { max-width: 34rem; overflow-wrap: anywhere; } .scroll { overflow-x: auto; }
pre { overflow-x: auto; border: 1px solid var(--line); padding: .8rem; font-size: 12.5px; }
.key b { font-weight: 600; margin-left: .7rem; font-size: .85rem; display: inline-block;
  line-height: 1.25; border-bottom: 2px solid; }
.key b.dashed { border-bottom-style: dashed; }
@media (max-width: 500px) { svg text { font-size: 16px; } }
#by-step:checked ~ .time, #by-time:checked ~ .step { display: none; }
"""
    + ANSWER_STYLE
    + "".join(
        f".c{i} {{ stroke: var(--c{i}); }} b.c{i} {{ color: var(--c{i}); }} "
        f"rect.c{i}, polygon.c{i} {{ fill: var(--c{i}); stroke: none; }}\n"
        for i in range(6)
    )
)

ABLATION_NAMES = {
    "blank": "an empty page",
    "shuffled": "another page",
    "without": "no page",
    "text": "as much text",
}


def curves(runs: list[Run], x: str) -> str:
    """All charts over "step" or "minutes"."""
    single = len(runs) == 1

    def lines(title: str, *columns: tuple[str, str, str], scale: float = 1.0) -> str:
        """A column is (kind, key, name); those of one run alone differ in colour. A figure with an
        interval has a band around it."""
        series, bands = [], []
        for run in runs:
            for i, (kind, key, name) in enumerate(columns):
                css = f"c{i}" if single else f"{run.css}{' dashed' * (i > 0)}"
                whole = name if single else f"{run.name}{', ' * bool(name)}{name}"
                series.append((css, whole, run.column(kind, key, x, scale)))
                bands.append((css, run.band(key, x) if kind == "eval" else []))
        return chart(title, series, x, bands)

    rates = [("eval", "cer", "mean over answers"), ("eval", "cer_corpus", "all answers as one")]
    if single:
        rates.append(("eval", "cer_median", "median"))
    return "".join(
        (
            lines(
                "Loss, nats per token", ("train", "loss", "training"), ("eval", "loss", "held out")
            ),
            lines(
                "Does it read: rise of the loss without the right page",
                ("eval", "reads/shuffled", "another page"),
                ("eval", "reads/blank", "an empty page"),
            ),
            lines("Character error rate", *rates),
            lines("ROUGE-L of answers", ("eval", "rougeL", "")),
            lines("Learning rate", ("train", "lr", "")),
            lines("Gradient norm, before clipping", ("train", "grad_norm", "")),
            lines("Samples per second", ("train", "samples_per_s", "")),
            lines("Model FLOP utilisation, %", ("train", "mfu", ""), scale=100),
            lines("Waiting for data, % of the time", ("train", "data_wait_share", ""), scale=100),
            lines("Peak memory of rank 0, MiB", ("train", "peak_memory_bytes", ""), scale=2.0**-20),
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


def _figure(name: str, values: dict) -> str:
    """A figure, with its interval if it has one."""
    if name not in values:
        return ""
    ends = [values.get(f"{name}_{end}") for end in ("low", "high")]
    interval = "" if None in ends else '<div class="what">{:.3g} to {:.3g}</div>'.format(*ends)
    return f"{values[name]:.6g}{interval}"


def figures(runs: list[Run]) -> str:
    """Every figure of the last evaluations, and of the best ones that are others, with what it is;
    a column for each."""
    columns = []
    for run in runs:
        name = "" if len(runs) == 1 else f"{html.escape(run.name)}, "
        if run.last:
            columns.append((f"{name}step {run.last['step']} (last)", run.last))
        if run.best and run.best["step"] != run.last["step"]:
            by = html.escape(str(run.metric))
            columns.append((f"{name}step {run.best['step']} (best by {by})", run.best))
    there = dict.fromkeys(name for _, values in columns for name in values)
    names = [name for name in DEFINITIONS if name in there]
    names += [n for n in there if n not in DEFINITIONS and not n.startswith(PREFIX)]  # a heat map
    intervals = {f"{name}_{end}" for name in WITH_INTERVAL for end in ("low", "high")}
    shown = [name for name in names if name not in {"kind", "minutes", "step"} | intervals]
    if not shown:
        return ""
    rows = []
    for name in shown:
        what = html.escape(DEFINITIONS.get(name, ""))
        cells = [_figure(name, values) for _, values in columns]
        rows.append([f'{html.escape(name)}<div class="what">{what}</div>', *cells])
    note = (
        "<p>Below a mean over answers: its 95 % bootstrap interval, which says how far the figure "
        "may be off because so few answers were scored.</p>"
    )
    drawn = table(["", *(title for title, _ in columns)], rows, number=True)
    return f"<h2>Figures</h2>{note if intervals & set(names) else ''}{drawn}"


def pages_and_answers(run: Run) -> str:
    """Pages beside reference and answer: of the first and the last evaluation, of all the last
    one's answers, and of the best one's."""
    kept, parts = run.path / "pages", []
    last, best = run.last, run.best
    if last and (shown := run.answers(last["step"], "last")):
        parts.append(HOW_TO_READ)
        if compared := before_and_after(run.first_answers(), shown, kept):
            step = run.lines["eval"][0]["step"]
            parts.append(f"<h3>Before and after: steps {step} and {last['step']}</h3>{compared}")
        parts.append(f"<h3>Answers at step {last['step']}, the last evaluation</h3>")
        parts.append(answers(shown, kept))
    if best and best["step"] != last["step"] and (shown := run.answers(best["step"], "best")):
        title = f"Answers of the best checkpoint, step {best['step']}"
        parts.append(f"<details><summary>{title}</summary>{answers(shown, kept)}</details>")
    if not parts:
        parts = [f'<div class="pages">{"".join(map(image, sorted(kept.glob("*.png"))))}</div>']
    return f"<h2>Pages and answers: {html.escape(run.name)}</h2>{''.join(parts)}"


def ends(run: Run) -> str:
    """The held-out loss at first and at last, and the best checkpoint if that is another one."""
    first, last = run.lines["eval"][0], run.last
    reached = f"{run.name}: held-out loss {first['loss']:.4f} at step {first['step']}"
    if last["step"] != first["step"]:
        reached += f", {last['loss']:.4f} at step {last['step']}"
    beside = best_beside_last(run.best, last, run.metric) if run.best else ""
    return html.escape(f"{reached}; {beside}" if beside else f"{reached}.")


def differences(runs: list[Run]) -> str:
    """The settings in which the runs differ, as what they became."""
    tables = [
        {
            f"{title}.{name}": run.resolved.get(name, value)
            for title, table in run.settings.items()
            for name, value in table.items()
        }
        for run in runs
    ]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [
        [html.escape(name), *(html.escape(str(table.get(name, ""))) for table in tables)]
        for name in names
        if len({str(table.get(name)) for table in tables}) > 1
    ]
    return "<h2>What differs</h2>" + table(["setting", *(html.escape(r.name) for r in runs)], rows)


def page_of_any(*paths: Path) -> str:
    """`page` of what a user names. Raises UserError if it is no run, or a damaged one."""
    for path in paths:
        if not os.path.isfile(path / "metrics.jsonl"):
            raise UserError(f"{path}: not a run directory (no metrics.jsonl)")
    try:
        return page(*paths)
    except OSError as error:
        raise UserError(f"{error.filename or paths[0]}: {error.strerror}") from None
    except DAMAGED as error:
        names = ", ".join(map(str, paths))
        raise UserError(f"{names}: damaged metrics or settings ({error})") from None


def page(*paths: Path) -> str:
    """The whole report of one run, or of several side by side."""
    runs = [Run(Path(path), number) for number, path in enumerate(paths)]
    title = html.escape(" · ".join(run.name for run in runs))
    lines = [ends(run) for run in runs if run.lines["eval"]]
    parts = [
        f"<h1>{title}</h1><p>{'<br>'.join(lines)}</p><h2>Curves</h2>",
        '<input type="radio" name="over" id="by-step" checked><label for="by-step">over steps'
        '</label> <input type="radio" name="over" id="by-time"><label for="by-time">over '
        "minutes of training</label>",
        f'<div class="charts step">{curves(runs, "step")}</div>',
        f'<div class="charts time">{curves(runs, "minutes")}</div>',
        arms(runs),
        needles(runs),
        reading(runs),
        figures(runs),
        differences(runs) if len(runs) > 1 else "",
    ]
    for run in runs:
        parts.append(pages_and_answers(run))
        parts.append(
            f"<details><summary>Settings: {html.escape(run.name)}</summary>"
            f"<pre>{html.escape(run.config)}</pre></details>"
        )
    return (
        f'{PAGE_HEAD}<head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>'
        f"{''.join(parts)}</body></html>\n"
    )
